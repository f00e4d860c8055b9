"""An exercise: a function that a reader writes, and the library's own function that it must equal.

A topic is a module of `culm.learn.checks` with a tuple `EXERCISES`; the exercise `attention.scores`
is in the module `attention`. Each is data: its task, the reference, inputs, and known mistakes. A
reader's function that gives what a known mistake gives gets the hint of that mistake.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from culm.config import SettingError, did_you_mean
from culm.learn.compare import difference, outline

Function = Callable[..., Any]
Cases = Callable[[torch.Generator], Sequence[tuple[Any, ...]]]
State = Literal["right", "wrong", "unfinished"]
CHECKS = "culm.learn.checks"


@dataclass(frozen=True)
class Mistake:
    """hint: what to say to somebody whose function gives what this function gives."""

    hint: str
    function: Function


@dataclass(frozen=True)
class Exercise:
    """name: `topic.name`. task: in one sentence. reference: what a right answer gives.

    cases: the inputs, a tuple of arguments each, from a seeded generator; edge cases included.
    answer: how a reader may write it, where the reference calls the library. mistakes: plausible
    wrong answers; every one must fail. tolerance: of numbers, absolute and relative.
    """

    name: str
    task: str
    reference: Function
    cases: Cases
    answer: Function | None = None
    mistakes: tuple[Mistake, ...] = ()
    tolerance: float = 1e-5

    def inputs(self) -> list[tuple[Any, ...]]:
        """The arguments of each case, the same at each call."""
        return list(self.cases(torch.Generator().manual_seed(0)))

    @property
    def solution(self) -> Function:
        """A right answer, for lessons to continue with and for readers to see."""
        return self.answer or self.reference


@dataclass(frozen=True)
class Verdict:
    """What a check found. words: what differs, with a hint, in one or two sentences."""

    name: str
    state: State
    words: str = ""

    def __str__(self) -> str:
        said = {"right": "right", "wrong": "not yet right", "unfinished": "not written yet"}
        return f"{self.name}: {said[self.state]}" + (f": {self.words}" if self.words else "")


def normal(chance: torch.Generator, *shape: int) -> Tensor:
    """Random numbers of mean 0 and variance 1."""
    return torch.randn(*shape, generator=chance)


def whole(chance: torch.Generator, high: int, *shape: int) -> Tensor:
    """Random integers from 0 to high - 1."""
    return torch.randint(high, shape, generator=chance)


def find(name: str) -> Exercise:
    """The exercise of a name.

    Raises:
        SettingError: there is none.
    """
    topic = name.split(".")[0]
    if not topic.isidentifier() or topic.startswith("_") or find_spec(f"{CHECKS}.{topic}") is None:
        raise SettingError(f"{name}: there is no topic {topic!r}; `culm learn` lists the lessons")
    known = {one.name: one for one in import_module(f"{CHECKS}.{topic}").EXERCISES}
    if name not in known:
        raise SettingError(f"there is no exercise {name!r}{did_you_mean(name, list(known))}")
    return known[name]


def judge(exercise: Exercise, function: Function) -> Verdict:
    """Compare a function with the reference on every case; the first difference decides."""
    cases = exercise.inputs()
    for number, arguments in enumerate(cases, 1):
        expected = exercise.reference(*deepcopy(arguments))
        try:
            seen = function(*deepcopy(arguments))
        except NotImplementedError:
            return Verdict(exercise.name, "unfinished", exercise.task)
        except (Exception, SystemExit) as error:
            words = f"it raises {type(error).__name__}: {_first_line(error)}"
            return Verdict(exercise.name, "wrong", words + _where(exercise, arguments))
        if seen is None and expected is not None:
            return Verdict(exercise.name, "unfinished", f"it returns nothing. {exercise.task}")
        found = difference(seen, expected, exercise.tolerance)
        if found is not None:
            of = f" (case {number} of {len(cases)})" if len(cases) > 1 else ""
            words = found + of + _where(exercise, arguments) + _hint(exercise, cases, function)
            return Verdict(exercise.name, "wrong", words)
    return Verdict(exercise.name, "right")


def _hint(exercise: Exercise, cases: Sequence[tuple[Any, ...]], function: Function) -> str:
    """The hint of the mistake that gives the same in all cases."""
    for mistake in exercise.mistakes:
        if all(_same(mistake.function, function, case, exercise.tolerance) for case in cases):
            return f" Hint: {mistake.hint}"
    return ""


def _same(one: Function, other: Function, arguments: tuple[Any, ...], tolerance: float) -> bool:
    try:
        first, second = (function(*deepcopy(arguments)) for function in (one, other))
        return difference(first, second, tolerance) is None
    except (Exception, SystemExit):
        return False


def _where(exercise: Exercise, arguments: tuple[Any, ...]) -> str:
    """The arguments, by their names and in short."""
    names = list(inspect.signature(exercise.reference).parameters)
    names += ["..."] * (len(arguments) - len(names))
    given = ", ".join(f"{n}={outline(a)}" for n, a in zip(names, arguments, strict=False))
    return f", for {given}."


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")
