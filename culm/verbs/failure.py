"""How the command line fails: one plain sentence and a non-zero exit code, no traceback."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from culm.exits import exit_code, sentence_of


def run(app: Callable[[], None]) -> None:
    """Run the command line; `--debug`, anywhere in it, shows tracebacks."""
    if sys.stdout is None:  # closed by the parent; the next file would get their numbers
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        _write_any_character(stream)
    signal.signal(signal.SIGTERM, _end)
    if "--debug" in sys.argv:
        sys.argv = [sys.argv[0], "--debug", *(a for a in sys.argv[1:] if a != "--debug")]
        app()
        return
    try:
        app()
    except SystemExit as ended:
        if ended.__context__ and isinstance(ended.__context__.__cause__, KeyboardInterrupt):
            sys.stderr.write("\nculm: interrupted; the same command starts again\n")
        raise
    except (ValueError, OSError, RuntimeError, ImportError, MemoryError) as error:
        sentence = sentence_of(error)
        if _says(sentence):
            with suppress(OSError):
                sys.stderr.write(f"culm: {_rank()}{sentence}\n")
                sys.stderr.flush()
        sys.exit(exit_code(error))
    finally:
        _let_go(sys.stdout)
        _let_go(sys.stderr)


def _write_any_character(stream: TextIO) -> None:
    """No character of a text may end a run, whatever encoding the locale has, as on Windows.

    Files and pipes are UTF-8, unless PYTHONIOENCODING says otherwise; a terminal shows what it can.
    """
    careful = ("strict", "surrogateescape")  # the second one in the C locale
    if not isinstance(stream, io.TextIOWrapper) or stream.errors not in careful:
        return
    chosen = stream.isatty() or "PYTHONIOENCODING" in os.environ
    stream.reconfigure(encoding=None if chosen else "utf-8", errors="replace")


def _let_go(stream: TextIO) -> None:
    """Python writes what is buffered when it ends, and fails where nobody reads it any more."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _end(number: int, frame: object) -> None:
    """On SIGTERM: exit by an exception, so that half-written files are removed."""
    sys.exit(128 + number)


def _says(sentence: str) -> bool:
    """Whether it is for this process to say it, and not for another rank that found the same."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return True
    from culm.parallel.launch import is_first_to_say  # and so PyTorch

    return is_first_to_say(sentence)


def _rank() -> str:
    """Which of several processes this is: the others fail too when they lose it."""
    rank = os.environ.get("RANK", "0")
    return f"rank {rank}: " if rank != "0" else ""
