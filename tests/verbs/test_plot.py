"""culm plot: runs that differ in their seed make a band, others a curve each."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from culm.config import SettingError
from culm.eval.curves import Point, curve_of, ends, grouped, read_measured
from culm.verbs.plot import show_plot


@pytest.fixture
def runs(tmp_path: Path) -> Callable[..., list[Path]]:
    """Folders of runs: (name, rate, seed, loss of each step)."""

    def make(*given: tuple[str, float, int, list[float]]) -> list[Path]:
        folders = []
        for name, rate, seed, losses in given:
            folder = tmp_path / name
            folder.mkdir()
            settings = {"folder": str(folder), "seed": seed, "train": {"optimizer": {"rate": rate}}}
            (folder / "run.yaml").write_text(yaml.safe_dump(settings))
            lines = [
                {"step": step, "loss": loss, "tokens": 100 * step, "seconds": 1.0}
                for step, loss in enumerate(losses, 1)
            ]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
            ends = {"step": len(losses), "loss": 9.0, "scores": {"all": {"value": 0.5}}}
            (folder / "eval.jsonl").write_text(json.dumps(ends) + "\n")
            folders.append(folder)
        return folders

    return make


def test_seeds_are_one_curve_and_settings_tell_groups_apart(runs) -> None:
    folders = runs(
        ("a", 0.1, 0, [3, 2, 1]), ("b", 0.1, 1, [5, 4]), ("c", 0.2, 0, [1, 1, 1]),
    )  # fmt: skip
    groups = grouped([read_measured(folder) for folder in folders])
    assert {name: len(members) for name, members in groups.items()} == {
        "rate=0.1": 2,
        "rate=0.2": 1,
    }
    both = curve_of(groups["rate=0.1"], "loss")
    assert both == [Point(1, 4, 3, 5), Point(2, 3, 2, 4)]  # steps that both have
    assert curve_of(groups["rate=0.2"], "loss", "tokens")[2] == Point(300, 1, 1, 1)
    assert curve_of(groups["rate=0.2"], "scores.all.value") == [Point(3, 0.5, 0.5, 0.5)]
    assert curve_of(groups["rate=0.2"], "eval.loss") == [Point(3, 9, 9, 9)]


def test_the_last_value_is_a_mean_of_a_long_curve(runs) -> None:
    """Noise within a run is no difference between runs."""
    noise = [1.0, 3.0] * 100
    folders = runs(("a", 0.1, 0, noise), ("b", 0.1, 1, [n + 1 for n in noise]), ("c", 0.1, 2, [5]))
    a, b, c = map(read_measured, folders)
    assert ends([a, b], "loss") == [2, 3]
    assert ends([c], "loss") == [5]
    assert ends([a, c], "eval.loss") == []


def test_seeds_that_start_from_runs_of_their_own_are_one_curve(runs) -> None:
    starts = runs(("s0", 0.1, 0, [1.0]), ("s1", 0.1, 1, [1.0]), ("s2", 0.3, 0, [1.0]))
    folders = runs(*((f"r{n}", 0.2, n, [1.0]) for n in range(3)))
    for start, folder in zip(starts, folders, strict=True):
        settings = yaml.safe_load((folder / "run.yaml").read_text())
        (folder / "run.yaml").write_text(yaml.safe_dump({**settings, "start": str(start)}))
    groups = grouped(list(map(read_measured, folders)))
    assert sorted(map(len, groups.values())) == [1, 2]


def test_a_run_that_is_named_twice_counts_once(runs, tmp_path: Path, capsys) -> None:
    (folder,) = runs(("a", 0.1, 0, [3, 2]))
    show_plot([str(folder), f"{folder}/"], [], str(tmp_path / "x.png"), "step", False)
    assert capsys.readouterr().out.splitlines()[1].split()[1:] == ["1", "2"]


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_a_picture_and_a_table(runs, kind: str, tmp_path: Path, capsys) -> None:
    folders = runs(*((f"r{n}", 0.1 + n, 0, [3.0] * (70 + n)) for n in range(10)))
    out = tmp_path / "plots" / f"all.{kind}"
    show_plot(list(map(str, folders)), ["loss", "eval.loss"], str(out), "tokens", False)
    assert out.stat().st_size > 5000
    shown = capsys.readouterr().out
    assert all(f"rate={0.1 + n}" in shown for n in range(10))
    with pytest.raises(ValueError, match="exists"):
        show_plot([str(folders[0])], [], str(out), "step", False)


def test_what_cannot_be_drawn_is_refused(runs, tmp_path: Path) -> None:
    (folder,) = runs(("a", 0.1, 0, [3, 2]))
    out = str(tmp_path / "x.png")
    with pytest.raises(SettingError, match="has no 'los'; did you mean 'loss'"):
        show_plot([str(folder)], ["los"], out, "step", False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingError, match="it is no run"):
        show_plot([str(tmp_path / "empty")], [], out, "step", False)
    with pytest.raises(SettingError, match=r"ends in none of \.png"):
        show_plot([str(folder)], [], str(tmp_path / "x.gif"), "step", False)
    with pytest.raises(SettingError, match="is not one of step, tokens"):
        show_plot([str(folder)], [], out, "epochs", False)
    (folder / "metrics.jsonl").unlink()
    (folder / "eval.jsonl").unlink()
    with pytest.raises(SettingError, match="measured nothing yet"):
        show_plot([str(folder)], [], out, "step", False)


def test_a_run_that_diverged_ends_nowhere(runs, tmp_path: Path, capsys) -> None:
    """Its last finite loss is that of a step before, and not of its end."""
    nan = float("nan")
    folders = runs(
        ("a", 0.1, 0, [3, 2, 2]), ("b", 0.1, 1, [3, 1, nan]), ("c", 0.2, 0, [3, 1, nan]),
        ("d", 0.3, 0, [3, nan, 2.5]),
    )  # fmt: skip
    show_plot([str(one) for one in folders], ["loss"], str(tmp_path / "p.svg"), "step", False)
    lines = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    assert [[word.strip() for word in line] for line in lines[1:4]] == [
        ["rate=0.1", "2", "2, 1 diverged"], ["rate=0.2", "1", "1 diverged"],
        ["rate=0.3", "1", "2.5"],
    ]  # fmt: skip
