"""`culm learn` for somebody with an empty home."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from solved import solved

from culm.cli import app
from culm.config import SettingError
from culm.learn.commands import learn
from culm.learn.compare import difference
from culm.learn.course import lessons, some_lessons
from culm.learn.exercise import find
from culm.learn.lesson import check, exercise, replaced, show
from culm.learn.progress import done, progress_file, record

FIRST = lessons()[0]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_list_shows_every_lesson(capsys: pytest.CaptureFixture[str]) -> None:
    assert learn([], "lessons", False) == 0
    said = capsys.readouterr().out
    assert all(lesson.title in said for lesson in lessons())
    assert f"0/{len(FIRST.exercises)}" in said
    assert "Start with: culm learn 1a" in said
    check("attention.softmax", lambda scores: scores.softmax(-1))
    learn([], "lessons", False)
    assert f"1/{len(FIRST.exercises)}" in capsys.readouterr().out


def test_after_a_lesson_the_list_names_the_next(capsys: pytest.CaptureFixture[str]) -> None:
    for name in FIRST.exercises:
        record(name)
    learn([], "lessons", False)
    assert "Next: culm learn 1b" in capsys.readouterr().out


def test_a_lesson_is_copied_and_never_over_work(folder: Path, capsys) -> None:
    assert learn(["1a"], "lessons", False) == 0
    copy = folder / "lessons" / FIRST.path.name
    assert copy.read_text() == FIRST.text
    assert f"culm learn check lessons/{FIRST.path.name}" in capsys.readouterr().out
    copy.write_text("my work")
    with pytest.raises(SettingError, match="already exists; edit it, then: culm learn check"):
        learn(["attention"], "lessons", False)
    assert copy.read_text() == "my work"
    learn(["1a"], "lessons", True)
    assert copy.read_text() == FIRST.text


def test_without_jupyter_there_is_a_script_alone(folder: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("culm.learn.commands.find_spec", lambda name: None)
    learn(["1a"], "lessons", False)
    assert [path.suffix for path in (folder / "lessons").iterdir()] == [".py"]
    assert "pip install 'culm[learn]'" in capsys.readouterr().out


def test_a_part_is_all_its_lessons() -> None:
    assert [one.number for one in some_lessons("1")] == ["1a", "1b"]
    assert some_lessons("01a_attention.py") == some_lessons("attention") == some_lessons("1a")
    with pytest.raises(SettingError, match="attention"):
        some_lessons("atention")


def test_a_file_is_checked_without_its_experiments(folder: Path, capsys) -> None:
    script = folder / "mine.py"
    text = solved(FIRST).replace("import torch\n", "import torch\nprint('experiment')\n", 1)
    script.write_text(text)
    assert learn(["check", "mine.py"], "lessons", False) == 0
    said = capsys.readouterr().out
    assert "experiment" not in said
    assert f"{len(FIRST.exercises)} of {len(FIRST.exercises)} are right." in said
    assert list(done()) == FIRST.exercises


def test_one_wrong_answer_is_one_wrong_line(folder: Path, capsys) -> None:
    wrong = "@exercise('attention.scores')\ndef scores(q, k):\n    return q @ k.T\n"
    after = (
        "@exercise('attention.weights')\ndef weights(q, k):\n    mask = torch.ones(len(q), len(q))"
        ".tril() == 0\n    return scores(q, k).masked_fill(mask, -1e9).softmax(-1)\n"
    )
    (folder / "mine.py").write_text(f"import torch\nLEFT = -1.5\n{wrong}{after}")
    assert learn(["check", "mine.py"], "lessons", False) == 1
    said = capsys.readouterr().out
    assert "divide by the square root of D." in said
    assert "1 of 2 are right." in said
    assert list(done()) == ["attention.weights"]


def test_a_file_may_have_dataclasses_and_change_parts_of_tensors(folder: Path) -> None:
    (folder / "mine.py").write_text(
        "import torch\nfrom dataclasses import dataclass\n"
        "x = torch.zeros(3)\nx[0] = 1.0\n"
        "@dataclass\nclass Point:\n    y: int = 0\n"
        "@exercise('attention.softmax')\ndef f(scores):\n    return scores.softmax(-1)\n"
    )
    assert learn(["check", "mine.py"], "lessons", False) == 0


def test_a_notebook_is_checked_too(folder: Path) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Title"]},
        {"cell_type": "code", "source": ["%matplotlib inline\n", "import torch\n"]},
        {
            "cell_type": "code",
            "source": "@exercise('attention.softmax')\ndef f(x):\n    return torch.softmax(x, -1)",
        },
    ]
    (folder / "mine.ipynb").write_text(json.dumps({"cells": cells}))
    assert learn(["check", "mine.ipynb"], "lessons", False) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["check"], "name the files"),
        (["check", "nowhere.py"], "no such file"),
        (["check", "empty.py"], "no exercises"),
        (["check", "broken.py"], "line 1"),
        (["check", "fails.py"], "line 1: ModuleNotFoundError"),
        (["check", "data.csv"], "neither .py nor .ipynb"),
        (["solution"], "name one exercise"),
        (["solution", "attention.score"], "attention.scores"),
        (["solution", "__init__.x"], "no topic"),
        (["1", "2"], "one lesson at a time"),
        (["99"], "no lesson '99'"),
    ],
)
def test_wrong_words_are_answered(words: list[str], message: str, folder: Path) -> None:
    (folder / "empty.py").write_text("x = 1\n")
    (folder / "broken.py").write_text("def (:\n")
    head = "@exercise('attention.softmax')\ndef f(x):\n    return x\n"
    (folder / "fails.py").write_text("import nothing_of_this_name\n" + head)
    (folder / "data.csv").write_text("a")
    with pytest.raises(SettingError, match=message):
        learn(words, "lessons", False)


def test_a_solution_is_shown_with_what_it_is_checked_against(capsys) -> None:
    learn(["solution", "attention.scores"], "lessons", False)
    said = capsys.readouterr().out
    assert "return q @ k.T / q.shape[-1] ** 0.5" in said
    assert "library.scores_of" in said


def test_an_exercise_falls_back_to_the_library(capsys) -> None:
    @exercise("attention.softmax")
    def wrong(scores):
        return scores

    assert wrong is find("attention.softmax").solution

    @exercise("attention.softmax")
    def right(scores):
        return scores.softmax(-1)

    assert right.__name__ == "right"
    assert "not yet right" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="not yet right"):
        check("attention.softmax", lambda scores: scores, strict=True)


def test_a_home_that_cannot_be_written_to_stops_nothing(monkeypatch, folder: Path) -> None:
    (folder / "file").write_text("")
    monkeypatch.setenv("CULM_LEARN", str(folder / "file" / "learn.json"))
    assert check("attention.softmax", lambda scores: scores.softmax(-1)).state == "right"


def test_progress_is_in_the_data_folder_of_the_user(monkeypatch) -> None:
    monkeypatch.delenv("CULM_LEARN")
    monkeypatch.setenv("XDG_DATA_HOME", "/somewhere")
    assert progress_file() == Path("/somewhere/culm/learn.json")
    monkeypatch.delenv("XDG_DATA_HOME")
    assert progress_file() == Path.home() / ".local/share/culm/learn.json"


def test_a_replaced_function_comes_back() -> None:
    known, seen = json.dumps, []

    def fails() -> None:
        with replaced(json, "dumps", str):
            seen.append(json.dumps)
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fails()
    assert seen == [str]
    assert json.dumps is known


def test_figures_are_written_next_to_the_script(folder: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(folder / "x.py"), raising=False)
    show("one", lambda path, text: path.write_text(text), "drawn")
    assert (folder / "figures" / "one.png").read_text() == "drawn"
    assert "one.png" in capsys.readouterr().out


def test_the_command_line_has_the_course(capsys) -> None:
    assert app(["learn"], standalone_mode=False) == 0
    assert "culm learn 1a" in capsys.readouterr().out


def test_it_starts_in_an_empty_home_without_torch(folder: Path) -> None:
    code = (
        "import sys\nfrom culm.cli import app\n"
        "for words in (['learn'], ['learn', '1b'], ['learn']):\n"
        "    app(words, standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    home = folder / "home"
    home.mkdir()
    given = {name: value for name, value in os.environ.items() if not name.startswith("XDG")}
    given |= {"HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}
    del given["CULM_LEARN"]
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=given, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert "home/.local/share/culm/learn.json" in ran.stdout
    assert (folder / "lessons" / "01b_block.py").is_file()
    assert not list(home.iterdir()), "listing and copying write nothing there"


SOFTMAX = "@exercise('attention.softmax')\ndef f(x):\n    return torch.softmax(x, -1)\n"
LEAVES = "@exercise('attention.scores')\ndef scores(q, k):\n    exit()\n"


def notebook(path: Path, *cells: str) -> str:
    code = [{"cell_type": "code", "source": cell} for cell in cells]
    path.write_text(json.dumps({"cells": code}))
    return path.name


@pytest.mark.parametrize("cell", ["%%bash\nls -l | wc", "softmax?", "!ls", "  %time 3"])
def test_cells_that_are_no_python_fail_nothing(folder: Path, cell: str) -> None:
    cells = ("%%time\nimport torch", cell, SOFTMAX)
    assert learn(["check", notebook(folder / "n.ipynb", *cells)], "lessons", False) == 0


def test_a_line_that_begins_with_an_operator_is_no_command(folder: Path) -> None:
    lines = (
        "import torch\n@exercise('attention.softmax')\ndef f(x):\n    axis = (5\n      % 2 - 2)\n"
    )
    name = notebook(folder / "n.ipynb", f"{lines}    return torch.softmax(x, axis)")
    assert learn(["check", name], "lessons", False) == 0


@pytest.mark.parametrize(
    "helper",
    ["ROOT = 1 / 2", "power: float = 2**-1", "half = lambda x: float(x) / 2", "A, B = 1, -1",
     "trained = model.weights", "def plot(points=losses):\n    print(points)",
     "later.attribute = 3"],
)  # fmt: skip
def test_helpers_of_the_reader_are_known(folder: Path, helper: str) -> None:
    name = helper.split()[0].strip(":,")
    uses = f"    {name}\n" if name in ("ROOT", "power", "half", "A") else ""
    body = SOFTMAX.replace("    return", f"{uses}    return")
    (folder / "mine.py").write_text(f"import torch\n{helper}\n{body}")
    assert learn(["check", "mine.py"], "lessons", False) == 0


def test_an_answer_that_exits_is_wrong(folder: Path, capsys) -> None:
    (folder / "mine.py").write_text(f"import torch\n{LEAVES}{SOFTMAX}")
    assert learn(["check", "mine.py"], "lessons", False) == 1
    said = capsys.readouterr().out
    assert "it raises SystemExit" in said
    assert "1 of 2 are right." in said


def test_one_broken_file_does_not_hide_the_others(folder: Path, capsys) -> None:
    (folder / "mine.py").write_text(f"import torch\n{SOFTMAX}")
    (folder / "notes.py").write_text("def (:\n")
    assert learn(["check", "notes.py", "mine.py"], "lessons", False) == 1
    said = capsys.readouterr().out
    assert "1 of 1 are right." in said
    assert "Not checked: notes.py: line 1" in said


@pytest.mark.parametrize("text", ["{}", "[1]", "not JSON", '{"cells": 1}'])
def test_what_is_no_notebook_is_refused_by_name(folder: Path, text: str) -> None:
    (folder / "n.ipynb").write_text(text)
    with pytest.raises(SettingError, match=r"n\.ipynb: "):
        learn(["check", "n.ipynb"], "lessons", False)


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_damaged_progress_starts_again(text: str, capsys) -> None:
    """As after a full disk."""
    progress_file().parent.mkdir(parents=True, exist_ok=True)
    progress_file().write_text(text)
    assert learn([], "lessons", False) == 0
    check("attention.softmax", lambda scores: scores.softmax(-1))
    assert list(done()) == ["attention.softmax"]
    assert progress_file().with_name("learn.json.damaged").read_text() == text


def test_a_home_that_cannot_be_written_to_stops_no_check(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    (folder / "file").write_text("")
    monkeypatch.setenv("CULM_LEARN", str(folder / "file" / "learn.json"))
    (folder / "mine.py").write_text(f"import torch\n{SOFTMAX}")
    assert learn(["check", "mine.py"], "lessons", False) == 0
    assert "1 of 1 are right." in capsys.readouterr().out


def test_a_result_of_another_kind_is_told(capsys) -> None:
    assert difference({"1": 2}, {1: 2}, 1e-5) is not None
    assert difference(np.array([None]), torch.ones(1), 1e-5) is not None


def test_a_part_is_completed(folder: Path, capsys) -> None:
    learn(["1a"], "lessons", False)
    mine = folder / "lessons" / FIRST.path.name
    mine.write_text("my work")
    assert learn(["1"], "lessons", False) == 0
    assert mine.read_text() == "my work"
    assert "stays as it is" in capsys.readouterr().out
    assert (folder / "lessons" / "01b_block.py").exists()
