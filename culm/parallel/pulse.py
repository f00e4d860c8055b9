"""Progress of the main thread of a rank, which another thread reports to the other ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Pulse:
    """The trainer counts its steps and their phases here. Who reads the same place for long, though
    the rank is within a step and waits for nothing that may take long, knows that it hangs.

    All ranks go through the same phases, so the place of a rank that others wait for is before
    theirs.
    """

    def __init__(self) -> None:
        self.steps = self.phases = 0
        self._inside = False
        self._waits = 0

    @property
    def place(self) -> tuple[int, int]:
        """How many steps this process has entered, and how many phases of the last one."""
        return self.steps, self.phases

    @property
    def must_move(self) -> bool:
        """Whether the rank is within a step and waits for nothing.

        Preparing, evaluating, saving and reporting are outside of steps.
        """
        return self._inside and not self._waits

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around a step."""
        self.steps, self.phases, self._inside = self.steps + 1, 0, True
        try:
            yield
        finally:
            self._inside = False

    def phase(self) -> None:
        """Called at the start of each phase of a step, and at its end."""
        self.phases += 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what may take long within a step, such as an answer from the network."""
        self.wait()
        try:
            yield
        finally:
            self.go_on()

    def wait(self) -> None:
        """Begin to wait, until `go_on`."""
        self._waits += 1

    def go_on(self) -> None:
        """End what `wait` began."""
        self._waits -= 1
        self.phase()


def wait_while_compiling(pulse: Pulse) -> None:
    """Count compilation, which a new shape starts in any step, as waiting."""
    # PyTorch offers these calls for such watches.
    from torch._dynamo.callback import CallbackArgs, on_compile_end, on_compile_start

    def ignoring(act: Callable[[], None]) -> Callable[[CallbackArgs], None]:
        return lambda args: act()

    on_compile_start(ignoring(pulse.wait))
    on_compile_end(ignoring(pulse.go_on))
