"""`culm inspect` with a text: shown in the terminal and into files."""

import sys

import pytest

from culm.cli import main
from culm.config import parse
from culm.convert import native
from culm.model.transformer import TransformerConfig


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    values = {
        "vocabulary": 350,
        "width": 32,
        "layers": 2,
        "context": 24,
        "attention": {"kind": "gqa", "heads": 2},
    }
    folder = tmp_path_factory.mktemp("look") / "model"
    native.save(parse(TransformerConfig, values).build(seed=0), tokenizer, folder)
    return folder


@pytest.fixture
def inspect(model, monkeypatch, capsys):
    """Runs the verb; gives its exit code, standard output and standard error."""

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["culm", "inspect", str(model), *map(str, options)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("option", "line", "files"),
    [
        ("--attention", "layer 1, head 1", {"attention-0", "attention-1"}),
        ("--logit-lens", "the head", {"logit-lens"}),
        ("--histograms", "blocks.*.attention.q.weight", {"weights", "activations"}),
    ],
)
@pytest.mark.parametrize("kind", ["png", "svg"])
def test_shown_in_the_terminal_and_in_files(inspect, tmp_path, option, line, files, kind):
    code, out, _ = inspect(option, "a quick fox", "--out", tmp_path / "p", "--format", kind)
    assert code == 0
    assert line in out
    plotted = {path.stem for path in (tmp_path / "p").glob(f"*.{kind}") if path.stat().st_size}
    assert plotted == files


def test_bad_texts_and_formats_are_refused(inspect):
    assert "tokens; give 1 to 24" in inspect("--attention", "the lazy dog " * 30)[2]
    shown = inspect("--attention", "a fox", "--format", "gif")[2]
    assert "format: 'gif' is not one of png, svg" in shown
