"""Write the notebooks of the lessons: `python -m culm.learn.notebooks [FOLDER]`."""

from __future__ import annotations

import sys
from pathlib import Path

from culm.learn.course import lessons

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def notebook_text(script: str) -> str:
    """A script in percent format as a notebook without outputs; the same text at each call."""
    import jupytext

    notebook = jupytext.reads(script, fmt="py:percent")
    notebook.metadata = type(notebook.metadata)({"kernelspec": KERNEL})
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    return jupytext.writes(notebook, fmt="ipynb") + "\n"


def write_notebooks(folder: Path) -> list[Path]:
    """Write the notebook of every lesson; gives the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for lesson in lessons():
        written.append(folder / lesson.path.with_suffix(".ipynb").name)
        written[-1].write_text(notebook_text(lesson.text), encoding="utf-8")
    return written


if __name__ == "__main__":
    for path in write_notebooks(Path(sys.argv[1] if len(sys.argv) > 1 else "notebooks")):
        print(path)
