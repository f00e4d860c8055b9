"""Every lesson runs to its end, with and without answers, and its notebook says the same."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from solved import solved
from test_words import found as banned

from culm.learn.course import PARTS, Lesson, lessons
from culm.learn.graded import graded
from culm.learn.progress import done

ROOT = Path(__file__).parents[2]
LESSONS = lessons()
QUICK = ("1b",)  # the others take longer than ten seconds
SECONDS = 300  # a lesson takes under two minutes on a laptop; a busy machine has time too
each = pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.number)


def run(script: Path) -> str:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    given = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=SECONDS, env=given
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize(
    "lesson",
    [
        pytest.param(one, id=one.number, marks=() if one.number in QUICK else pytest.mark.slow)
        for one in LESSONS
    ],
)
@pytest.mark.timeout(SECONDS + 60)
def test_it_runs_with_right_answers(lesson: Lesson, tmp_path: Path) -> None:
    script = tmp_path / lesson.path.name
    script.write_text(solved(lesson))
    printed = run(script)
    for name in lesson.exercises:
        assert f"{name}: right\n" in printed
    assert list(done()) == lesson.exercises
    shown = re.findall(r"^\s*show\(\s*\"([\w-]+)\"", lesson.text, re.M)
    assert len(set(shown)) == len(shown) >= 3, "two figures of one name"
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == set(shown)


def test_it_runs_without_answers(tmp_path: Path) -> None:
    (lesson,) = (one for one in LESSONS if one.number == QUICK[0])
    script = tmp_path / lesson.path.name
    script.write_text(lesson.text)
    printed = run(script)
    assert printed.count("not written yet") == len(lesson.exercises)
    assert not done()


@each
def test_no_answer_stands_in_the_lesson(lesson: Lesson) -> None:
    assert [one.state for one in graded(lesson.path)] == ["unfinished"] * len(lesson.exercises)


@each
def test_the_file_is_graded_as_the_lesson(lesson: Lesson, tmp_path: Path) -> None:
    script = tmp_path / lesson.path.name
    script.write_text(solved(lesson))
    assert {one.state for one in graded(script)} == {"right"}


@each
def test_it_has_the_sections_of_a_lesson(lesson: Lesson) -> None:
    assert lesson.text.startswith("# %% [markdown]\n# # Lesson " + lesson.number + ": ")
    assert "**The question.**" in lesson.text
    assert "# ## What goes wrong in practice" in lesson.text
    assert "plots.expected" in lesson.text
    assert lesson.part in PARTS
    for path in re.findall(r"`((?:culm|docs|tests)/[\w/.]+)`", lesson.text):
        assert (ROOT / path).exists(), path


@each
def test_it_uses_the_words_of_the_list(lesson: Lesson) -> None:
    prose = "\n".join(re.findall(r"^# (.*)$", lesson.text, re.M))
    assert banned(prose) == []


@each
def test_the_notebook_is_in_step(lesson: Lesson) -> None:
    pytest.importorskip("jupytext")
    from culm.learn.notebooks import notebook_text

    notebook = ROOT / "notebooks" / lesson.path.with_suffix(".ipynb").name
    assert notebook.read_text() == notebook_text(lesson.text), "python -m culm.learn.notebooks"
    # The notebook alone says the same too.
    assert len(graded(notebook)) == len(lesson.exercises)


@each
def test_a_notebook_stores_no_output(lesson: Lesson) -> None:
    """Results come from the reader's machine, and changes of a lesson stay readable."""
    notebook = ROOT / "notebooks" / lesson.path.with_suffix(".ipynb").name
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


def test_the_page_lists_every_lesson() -> None:
    page = (ROOT / "docs" / "learn.md").read_text(encoding="utf-8")
    for one in LESSONS:
        row = rf"^\| {one.number} \| {re.escape(one.title)} \|.* \| (\d+) \|$"
        (count,) = re.findall(row, page, re.M)
        assert int(count) == len(one.exercises), one.number


@pytest.mark.slow
def test_a_wheel_contains_the_lessons(tmp_path: Path) -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel")
    (path,) = wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path))
    inside = set(zipfile.ZipFile(path).namelist())
    assert {f"culm/learn/lessons/{one.path.name}" for one in LESSONS} <= inside


def test_no_notebook_is_left_of_a_lesson_that_is_gone() -> None:
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} == {
        one.path.stem for one in LESSONS
    }


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 60)
@each
def test_the_notebook_runs_in_jupyter(lesson: Lesson, tmp_path: Path) -> None:
    """As it is, without answers."""
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    import nbformat

    path = ROOT / "notebooks" / lesson.path.with_suffix(".ipynb").name
    notebook = nbformat.read(path, nbformat.NO_CONVERT)
    nbclient.NotebookClient(
        notebook, timeout=SECONDS, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    shown = [out for out in outputs if "image/png" in out.get("data", {})]
    assert len(shown) == lesson.text.count('show(\n    "') + lesson.text.count('show("')
    said = "".join(out.get("text", "") for out in outputs)
    assert said.count("not written yet") == len(lesson.exercises)
