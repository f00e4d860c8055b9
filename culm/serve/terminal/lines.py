"""What a person types: lines with editing and a history, questions of several lines."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

Read = Callable[[str, str], str]  # a prompt and what already stands there -> a line

HISTORY = 1000  # questions that are kept
BLOCK = '"""'


def history_file() -> Path:
    """Where the questions of all chats are kept."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "culm" / "chat_history"


class Lines:
    """Lines typed at a terminal. history: a file, which only its owner may read."""

    def __init__(self, history: Path, colored: bool) -> None:
        self._history, self._colored = history, colored
        self._readline = _readline()
        if self._readline:
            with contextlib.suppress(OSError):
                self._readline.read_history_file(history)
            if "libedit" not in (self._readline.__doc__ or ""):
                # Without it, each line of a pasted text would be a question.
                self._readline.parse_and_bind("set enable-bracketed-paste on")

    def read(self, prompt: str, already: str) -> str:
        """The next line.

        Raises:
            EOFError, KeyboardInterrupt: Ctrl-D, Ctrl-C.
        """
        if self._readline is None:
            return input(prompt)
        self._readline.set_pre_input_hook(lambda: self._insert(already))
        try:
            # The marks tell the line editor that a color has no width.
            return input(f"\x01\x1b[1;32m\x02{prompt}\x01\x1b[0m\x02" if self._colored else prompt)
        finally:
            self._readline.set_pre_input_hook()

    def close(self) -> None:
        """Write the history; a folder that cannot be written to keeps none."""
        if self._readline is None:
            return
        with contextlib.suppress(OSError):
            self._history.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self._history, os.O_CREAT | os.O_WRONLY, 0o600))
            self._history.chmod(0o600)
            self._readline.set_history_length(HISTORY)
            self._readline.write_history_file(self._history)

    def _insert(self, text: str) -> None:
        if self._readline and text:
            self._readline.insert_text(text)
            self._readline.redisplay()


def read_question(read: Read, already: str = "") -> str:
    r"""One question: a line; lines that end in a backslash and the next one; or all between
    three quotation marks.

    Raises:
        EOFError, KeyboardInterrupt: as `read`.
    """
    line = read("> ", already)
    if line.lstrip().startswith(BLOCK):
        text = line.lstrip()[len(BLOCK) :]
        while BLOCK not in text:
            text += "\n" + read("  ", "")
        before, _, after = text.partition(BLOCK)
        return (before + after).strip("\n")
    while line.endswith("\\"):
        line = line[:-1] + "\n" + read("  ", "")
    return line


def _readline() -> ModuleType | None:
    try:
        import readline
    except ImportError:  # Windows
        return None
    return readline
