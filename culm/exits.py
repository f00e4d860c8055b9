"""How a run ends, in one number, for schedulers and scripts (docs/reference/exits.md)."""

from __future__ import annotations

from typing import ClassVar

OTHER = 1  # a setting, a file, whatever else
DIVERGED, MEMORY, CHECKPOINT, REPLICAS, IN_USE, LOST_RANK = 3, 4, 5, 6, 7, 8  # 2: wrong arguments
AGAIN = 75  # stopped by the system: the same command resumes the run
STOPPED = 130  # by Ctrl-C


class RunError(RuntimeError):
    """An error with an exit code of its own."""

    exit_code: ClassVar[int] = OTHER


class OutOfMemory(RunError):
    """A step does not fit; the message says what to change."""

    exit_code = MEMORY


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of PyTorch or Python says that there is not enough memory."""
    text = str(error)
    return isinstance(error, MemoryError | OutOfMemory) or (
        isinstance(error, RuntimeError)
        and ("can't allocate memory" in text or "out of memory" in text)
    )


def exit_code(error: BaseException) -> int:
    """Of a process that an error ends."""
    if isinstance(error, RunError):
        return error.exit_code
    return MEMORY if is_out_of_memory(error) else OTHER
