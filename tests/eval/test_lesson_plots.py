"""Plots of lessons name their axes."""

from pathlib import Path

import pytest
import torch

from culm.eval import plots

DRAWN = {
    "expected": lambda path: plots.expected(path, [(1, 2), (2, 3)], [(1, 2), (3, 4)], "x", "y"),
    "logarithms": lambda path: plots.expected(
        path, [(1, 2)], [(1, 2), (30, 4)], "x", "y", ("rule", "run"), "xy"
    ),
    "table": lambda path: plots.table(path, torch.eye(3).bool(), "x", "y", "abc", "def", "title"),
    "numbers": lambda path: plots.table(path, torch.rand(2, 14), "x", "y", numbers=True),
    "columns": lambda path: plots.columns(path, {"a": 1.0, "b": 2.0}, "x", "y", 1.5),
}


@pytest.mark.parametrize("name", DRAWN)
def test_axes_have_names_and_a_file_is_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, write = [], plots._write
    monkeypatch.setattr(
        plots, "_write", lambda figure, path: (seen.append(figure), write(figure, path))
    )
    DRAWN[name](tmp_path / "plot.png")
    axes = seen[0].axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("x", "y")
    assert (tmp_path / "plot.png").stat().st_size > 1000
    if name == "logarithms":
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["rule", "run"]
    if name == "table":
        assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", "c"]
    if name == "numbers":
        assert len(axes.texts) == 28
