"""The command line, a small text, and a run that the command line itself has trained."""

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import TINY

from culm.cli import main


@pytest.fixture
def culm(monkeypatch, capsys, tmp_path):
    """Runs a command line; gives its exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["culm", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "fables.txt"
    path.write_text("\n\n".join(f"Fable {n}: a fox met {n} crows and sang." for n in range(300)))
    return path


@pytest.fixture(scope="session")
def model(tmp_path_factory, text) -> Path:
    """A run folder, trained for three steps by the verb itself."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    settings = [f"data.path={text}", "data.split=paragraphs", "train.steps=3", f"folder={folder}"]
    line = [sys.executable, "-m", "culm", "train", "pretrain", *TINY, *settings]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"Done: {folder}/model, {folder}/report.md\n"
    return folder
