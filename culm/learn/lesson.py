"""What lessons import: exercises that are checked where they are written, and figures.

    @exercise("attention.scores")
    def scores(q, k):
        raise NotImplementedError

A function that is not right yet is replaced by the library's, so that every lesson runs to its end
from the first day.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from culm.learn.exercise import Function, Verdict, find, judge
from culm.learn.progress import record


def check(name: str, function: Function, strict: bool = False) -> Verdict:
    """Compare a function with that of the library, print what was found, and note a success.

    Raises:
        AssertionError: it is not right, and the check is strict.
    """
    verdict = judge(find(name), function)
    if verdict.state == "right":
        record(name)
    elif strict:
        raise AssertionError(str(verdict))
    print(verdict)
    return verdict


def exercise(name: str) -> Callable[[Function], Function]:
    """Check the function below; gives it if it is right, and the library's version if not."""

    def checked(function: Function) -> Function:
        return function if check(name, function).state == "right" else find(name).solution

    return checked


@contextmanager
def replaced(owner: Any, name: str, function: Function) -> Iterator[None]:
    """Within it the library runs with another function: `replaced(gqa, "attend", mine)`.

    owner: a module, where code of this module calls the function; or a class, for a method.
    """
    known = getattr(owner, name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        setattr(owner, name, known)


def show(name: str, plot: Callable[..., None], *given: Any, **more: Any) -> None:
    """Show a plot of `culm.eval.plots` in a notebook, and write it to `figures/NAME.png`."""
    folder = _folder() / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    plot(path, *given, **more)
    if "ipykernel" in sys.modules:
        from IPython.display import Image, display

        display(Image(filename=str(path)))
    else:
        print(f"figure: {path}")


def _folder() -> Path:
    """That of the lesson: of the script, or the notebook's working directory."""
    script = getattr(sys.modules["__main__"], "__file__", None)
    return Path(script).parent if script and "ipykernel" not in sys.modules else Path()
