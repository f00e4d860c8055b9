"""The time that a call may take, without what does not count."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


class Deadline:
    """The end of `seconds` from now. paused: seconds so far that do not count, such as those in
    which a person answers.
    """

    def __init__(self, seconds: float, paused: Callable[[], float] | None = None) -> None:
        self._seconds, self._paused = seconds, paused or (lambda: 0.0)
        self._start = time.monotonic() - self._paused()

    @property
    def taken(self) -> float:
        """Seconds that count."""
        return time.monotonic() - self._paused() - self._start

    @property
    def left(self) -> float:
        """Seconds; 0 at the end."""
        return max(0.0, self._seconds - self.taken)

    def result(self, future: Future[T]) -> T:
        """Of work that goes on elsewhere. Raises TimeoutError at the end."""
        while left := self.left:
            try:
                return future.result(left)
            except TimeoutError:
                if future.done():  # the work has raised it
                    raise
        raise TimeoutError
