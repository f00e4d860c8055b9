"""`culm learn`: list the lessons, copy one, check a file, show a solution."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from culm.config import SettingError
from culm.exits import OTHER
from culm.files import refuse_existing
from culm.learn.course import PARTS, Lesson, lessons, some_lessons
from culm.learn.progress import done, progress_file, record


def learn(words: Sequence[str], out: str, overwrite: bool) -> int:
    """What the command line says; gives the exit code.

    Raises:
        SettingError: no lesson, file or exercise is meant.
    """
    match list(words):
        case []:
            list_lessons()
        case ["check"]:
            raise SettingError(f"name the files to check, such as {out}/*.py")
        case ["check", *files]:
            return check_files([Path(file) for file in files])
        case ["solution", name]:
            show_solution(name)
        case ["solution", *_]:
            raise SettingError("name one exercise, such as attention.scores")
        case [name]:
            copy_lessons(some_lessons(name), Path(out), overwrite)
        case _:
            raise SettingError("one lesson at a time; or: check FILE..., solution EXERCISE")
    return 0


def list_lessons() -> None:
    """Print all parts and lessons with what is done of each."""
    console, finished = Console(highlight=False, soft_wrap=True), done()
    table = Table(box=None, pad_edge=False)
    for column in ("lesson", "topic", "", "done"):
        table.add_column(column)
    part, every = "", []
    following: str | None = None
    for lesson in lessons():
        if lesson.part != part:
            part = lesson.part
            table.add_row(f"[bold]Part {part}[/]", "", f"[bold]{PARTS[part]}[/]", "")
        names = lesson.exercises
        every += names
        right = sum(name in finished for name in names)
        table.add_row(f"  {lesson.number}", lesson.topic, lesson.title, f"{right}/{len(names)}")
        if right < len(names) and following is None:
            following = lesson.number
    console.print(table)
    right = sum(name in finished for name in every)
    where = progress_file()
    console.print(f"\n{right} of {len(every)} exercises are done ({where}).", markup=False)
    if following:
        console.print(f"{'Next' if right else 'Start with'}: culm learn {following}", markup=False)


def copy_lessons(found: Sequence[Lesson], folder: Path, overwrite: bool) -> None:
    """Copy a lesson, or those of a part that the reader does not have yet."""
    for lesson in found:
        script = folder / lesson.path.name
        if len(found) > 1 and script.exists() and not overwrite:
            typer.echo(f"{lesson.number}: {script} is there, and stays as it is")
        elif script.exists() and not overwrite:
            raise SettingError(
                f"{script}: already exists; edit it, then: culm learn check {script}. --overwrite "
                "replaces it, and what you wrote is lost"
            )
        else:
            copy_lesson(lesson, folder, overwrite)


def copy_lesson(lesson: Lesson, folder: Path, overwrite: bool) -> None:
    """Copy a lesson to a reader's folder, as a notebook too where Jupyter is installed."""
    console = Console(highlight=False, soft_wrap=True)
    script = folder / lesson.path.name
    notebook = script.with_suffix(".ipynb")
    with_notebook = find_spec("jupytext") is not None
    for path in (script, notebook) if with_notebook else (script,):
        refuse_existing(path, overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    script.write_text(lesson.text, encoding="utf-8")
    console.print(
        f"{lesson.number}: {lesson.title}, {len(lesson.exercises)} exercises", markup=False
    )
    if with_notebook:
        from culm.learn.notebooks import notebook_text

        notebook.write_text(notebook_text(lesson.text), encoding="utf-8")
        console.print(f"  notebook: jupyter lab {notebook}", markup=False)
    else:
        console.print("  for notebooks: pip install 'culm[learn]'", markup=False)
    console.print(f"  script:   edit {script}, then python {script}", markup=False)
    console.print(f"  checks:   culm learn check {script}", markup=False)


def check_files(paths: Sequence[Path]) -> int:
    """Print a verdict for each exercise of these files, and note what is right; 0 if all are."""
    from culm.learn.graded import graded

    console = Console(highlight=False, soft_wrap=True)
    verdicts, wrong = [], []
    for path in paths:
        try:
            verdicts += graded(path)
        except SettingError as error:  # the other files may be right
            wrong.append(error)
    if not verdicts:
        raise wrong[0]
    width = max(len(one.name) for one in verdicts)
    marks = {
        "right": "[green]right[/]     ",
        "wrong": "[red]wrong[/]     ",
        "unfinished": "unfinished",
    }
    for one in verdicts:
        console.print(f"{one.name:<{width}}  {marks[one.state]}", end="  ")
        console.print(one.words, markup=False)
        if one.state == "right":
            record(one.name)
    right = sum(one.state == "right" for one in verdicts)
    console.print(f"\n{right} of {len(verdicts)} are right.")
    for refused in wrong:
        console.print(f"Not checked: {refused}", markup=False)
    return 0 if right == len(verdicts) and not wrong else OTHER


def show_solution(name: str) -> None:
    """Print the task of an exercise, and a right answer."""
    import inspect

    from culm.learn.exercise import find

    found, console = find(name), Console(highlight=False, soft_wrap=True)
    console.print(f"{name}: {found.task}\n", markup=False)
    console.print(inspect.getsource(found.solution), markup=False)
    if found.answer is not None:
        console.print("It is checked against:\n", markup=False)
        console.print(inspect.getsource(found.reference), markup=False)
