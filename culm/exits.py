"""How a run ends, in one number, for schedulers and scripts (docs/reference/exits.md)."""

from __future__ import annotations

from typing import ClassVar

OTHER = 1  # whatever has no code of its own
ARGUMENTS, DIVERGED, MEMORY, CHECKPOINT, REPLICAS, IN_USE, LOST_RANK = 2, 3, 4, 5, 6, 7, 8
AGAIN = 75  # stopped by the system: the same command resumes the run
REFUSED = 78  # a setting or a file that a run cannot use; EX_CONFIG of sysexits.h
FINAL = (ARGUMENTS, IN_USE, REFUSED)  # to start the same command again changes nothing
STOPPED = 130  # by Ctrl-C
RESUMES = "the same command resumes from the last checkpoint, or starts again if there is none"


class RunError(RuntimeError):
    """An error with an exit code of its own."""

    exit_code: ClassVar[int] = OTHER


class Refused(RunError):
    """A setting or a file cannot be used; the message says what to change."""

    exit_code = REFUSED


GAVE_NAN = "model: it gave NaN instead of probabilities; its weights may be damaged"


class NotFinite(RunError):
    """A model gives NaN; another attempt would give it too."""

    exit_code = DIVERGED


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


def sentence_of(error: BaseException) -> str:
    """What an error says, for people; lost connections and a lack of memory in plain words."""
    text = str(error).strip()
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return where + error.strerror[0].lower() + error.strerror[1:]
    if is_out_of_memory(error) and not isinstance(error, RunError):
        return (
            "not enough memory; use a smaller micro-batch, fewer slots or a shorter context "
            "(`culm plan` shows what a run needs)"
        )
    if "Connection closed by peer" in text or "Connection reset by peer" in text:
        return "another rank has ended; its own message says why"
    return text or type(error).__name__
