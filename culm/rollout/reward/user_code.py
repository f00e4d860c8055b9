"""A function of a user's Python file: loaded, called by parameter names, and its number checked."""

from __future__ import annotations

import inspect
import math
import os
import sys
import traceback
from abc import ABC
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, ClassVar, NoReturn

from pydantic import Field

from culm.config import SettingError, did_you_mean
from culm.rollout.reward.reward import RewardConfig
from culm.rollout.trajectory import text_of
from culm.tokenizer.message import Message

SETTING = "train.reward"
SHOWN = 60  # characters of a value in a message


class UserCode(RewardConfig, ABC):
    """path: a Python file, whose digest the run records; modules next to it are not found. name: of
    the function in it. messages: give prompts and completions as lists of messages and not as
    text.
    """

    tried: ClassVar[bool] = True

    path: str = Field(min_length=1)
    name: str = Field(min_length=1)
    messages: bool = False

    @property
    def files(self) -> tuple[Path, ...]:
        return (Path(self.path),)

    def shown(self, messages: list[Message]) -> str | list[Message]:
        """Messages as the function gets them; as text, with a blank line between them."""
        if self.messages:
            return [dict(message) for message in messages]
        return text_of(messages)


class UserFunction:
    """A function of a file. It is called by keyword, with what its parameters ask for.

    parameters: their names. needed: those without a default.
    """

    def __init__(self, path: str, name: str) -> None:
        self.path, self.name = path, name
        self._function = _load(path, name)
        code = self._function.__code__
        self._line = code.co_firstlineno if code.co_filename == path else 1
        known = inspect.signature(self._function).parameters.values()
        if inspect.iscoroutinefunction(self._function):
            self.refuse("is asynchronous; write a plain function")
        if any(one.kind is one.POSITIONAL_ONLY for one in known):
            self.refuse("has parameters without names; remove the / between them")
        named = [one for one in known if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
        self.parameters = {one.name for one in named}
        self.needed = {one.name for one in named if one.default is one.empty}
        self._takes_all = any(one.kind is one.VAR_KEYWORD for one in known)

    def __call__(self, arguments: Mapping[str, Any]) -> Any:
        """What it returns.

        Raises:
            SettingError: it needs other arguments, or fails.
        """
        if missing := sorted(self.needed - arguments.keys()):
            self.refuse(
                f"needs {' and '.join(map(repr, missing))}, which there is not"
                f"{did_you_mean(missing[0], sorted(arguments))}"
            )
        taken = arguments.keys() if self._takes_all else self.parameters
        try:
            with _one_process():
                return self._function(**{n: v for n, v in arguments.items() if n in taken})
        except (Exception, SystemExit) as error:
            what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            shown = ", ".join(f"{n}={_short(v)}" for n, v in list(arguments.items())[:2])
            line = _line_of(error, self.path) or self._line
            raise SettingError(
                f"{SETTING}: {self.path}:{line}: {self.name} raised {what} (given: {shown})"
            ) from error

    def number(self, value: Any) -> float:
        """A number that it returned; None is nan.

        Raises:
            SettingError: it is something else, or infinite.
        """
        if value is None:
            return math.nan
        if not isinstance(value, Real) or math.isinf(value):
            self.refuse(f"gave {_typed(value)}; a reward is a finite number, or None for unscored")
        return float(value)

    def numbers(self, values: Any, count: int) -> list[float]:
        """A list of this many numbers that it returned.

        Raises:
            SettingError: it is something else.
        """
        if not isinstance(values, list | tuple):
            self.refuse(f"gave {_typed(values)}; it gets lists, so it must return a list")
        if len(values) != count:
            self.refuse(f"gave {len(values)} rewards for {count} completions")
        return [self.number(value) for value in values]

    def refuse(self, what: str) -> NoReturn:
        """SettingError with the place of the function."""
        raise SettingError(f"{SETTING}: {self.path}:{self._line}: {self.name} {what}")


def _load(path: str, name: str) -> FunctionType:
    """The function, from a module that is compiled here: a cached one might be of older text."""
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise SettingError(f"{SETTING}.path: {path}: {error.strerror}") from None
    module = ModuleType(f"culm_user_{Path(path).stem}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        with _one_process():
            exec(compile(text, path, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        line = error.lineno if isinstance(error, SyntaxError) else _line_of(error, path)
        where = f"{path}:{line}" if line else path
        what = error.msg if isinstance(error, SyntaxError) else error
        raise SettingError(f"{SETTING}.path: {where}: {type(error).__name__}: {what}") from error
    found = module.__dict__.get(name)
    if not isinstance(found, FunctionType):
        known = sorted(n for n, value in module.__dict__.items() if isinstance(value, FunctionType))
        advice = did_you_mean(name, known) if known else "; it has none"
        raise SettingError(f"{SETTING}.name: {path} has no function {name!r}{advice}")
    return found


@contextmanager
def _one_process() -> Iterator[None]:
    """A child that the code of a user forks ends here: it must not train in the parent's folder."""
    process = os.getpid()
    code: str | int | None = 0
    try:
        yield
    except BaseException as error:
        if os.getpid() == process:
            raise
        code = error.code if isinstance(error, SystemExit) else 1
        if not isinstance(error, SystemExit):
            traceback.print_exc()
    finally:
        if os.getpid() != process:
            sys.stderr.flush()
            os._exit(code if isinstance(code, int) else code is not None)


def _line_of(error: BaseException, path: str) -> int | None:
    """The innermost line of the file that an error passed."""
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno for frame in reversed(frames) if frame.filename == path), None)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _typed(value: object) -> str:
    return f"{_short(value)} ({type(value).__name__})"
