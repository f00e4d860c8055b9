"""A Python interpreter for a model: `pydantic-monty` (https://github.com/pydantic/monty).

It is an interpreter of its own in a process of its own, with limits of time and memory, and without
files, network or environment. Needs the extra `agent`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from culm.config import SettingError
from culm.tools.function import ToolError

MEMORY = 64 << 20  # bytes
SECONDS = 5.0  # of one call
LOST = "; the interpreter was started again, so earlier variables are gone"


class PythonFunction:
    """Variables and functions stay for the next call, until `close`.

    seconds: of a call at most, memory: bytes of the interpreter.

    Raises:
        SettingError: the interpreter is not installed; there is no other one to fall back on.
    """

    name = "python"
    description = (
        "Run Python code and read what it prints and the value of its last line. Variables stay "
        "for the next call. It has the usual types and the modules math, re, json, datetime, and "
        "neither files nor a network nor other packages."
    )
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {"code": {"type": "string", "maxLength": 100_000}},
        "required": ["code"],
        "additionalProperties": False,
    }

    def __init__(self, seconds: float = SECONDS, memory: int = MEMORY) -> None:
        try:
            import pydantic_monty
        except ImportError:
            raise SettingError(
                "tools: python needs pydantic-monty: pip install 'culm[agent]'"
            ) from None
        self._monty: Any = pydantic_monty
        self._seconds, self._memory = seconds, memory
        self._stack, self._limit = ExitStack(), 0.0
        self._session: Any = None

    def run(self, arguments: Mapping[str, Any], seconds: float) -> str:
        monty = self._monty
        lost = self._open(min(seconds, self._seconds))
        printed = monty.CollectString()
        try:
            value = self._session.feed_run(str(arguments["code"]), print_callback=printed)
        except monty.MontySyntaxError as error:
            raise ToolError(f"SyntaxError: {error}") from None
        except Exception as error:
            text = f"{printed.output}{error}"
            # After a limit nothing is known about the heap, and a crash leaves none.
            known = isinstance(error, monty.MontyRuntimeError)
            if not known or str(error).startswith(("TimeoutError", "MemoryError")):
                self.close()
                text += LOST
            raise ToolError(text) from None
        shown = "" if value is None else repr(value)
        parts = (printed.output.rstrip("\n"), shown, lost)
        return "\n".join(part for part in parts if part) or "None"

    def close(self) -> None:
        """End the interpreter; the next call starts another."""
        self._stack.close()
        self._session = None

    def _open(self, limit: float) -> str:
        """Have a session of this limit; gives what the model must know of it."""
        if self._session is not None and limit >= self._limit:
            return ""
        lost = LOST.removeprefix("; ") if self._session is not None else ""
        self.close()  # the limit of a session is fixed, and less time is left
        pool = self._stack.enter_context(self._monty.Monty(max_processes=1))
        limits = {"max_feed_duration_secs": limit, "max_memory": self._memory}
        # A sleep is no time of the limit, so there is none.
        session = pool.checkout(limits=limits, os_policy={"sleep": "zero"})
        self._session, self._limit = self._stack.enter_context(session), limit
        return lost
