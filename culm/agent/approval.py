"""Which tool calls need the approval of a person."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from threading import Lock
from typing import Any, Literal, get_args

from culm.config import SettingError
from culm.tools.function import HIDDEN

Policy = Literal["ask", "auto", "never"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
# These cannot change or send anything: a sandbox, databases that are read, texts of a folder.
HARMLESS = ("python", "sql", "describe_tables", "search", "open")
NO_TERMINAL = "a person must approve this call, and there is no terminal to ask at"
Ask = Callable[[str], str]


class Person:
    """Somebody who is asked one thing at a time. ask: shows a text and gives the line that they
    write, with its end; empty: there will be no more.
    """

    def __init__(self, ask: Ask) -> None:
        self._ask, self._turn = ask, Lock()
        self._taken = 0.0
        self._since: float | None = None

    def __call__(self, text: str) -> str:
        with self._turn:
            self._since = time.monotonic()
            try:
                return self._ask(text)
            finally:
                self._taken, self._since = self.seconds(), None

    def seconds(self) -> float:
        """That they have taken so far, with those of an open question."""
        since = self._since
        return self._taken + (0.0 if since is None else time.monotonic() - since)


@dataclass
class Approvals:
    """rules: pairs (pattern of names, policy), of which the last that fits counts; without one,
    `auto` for tools that can do no harm, else `ask`. person: who is asked; None: there is nobody.
    """

    rules: Sequence[tuple[str, Policy]] = ()
    person: Person | None = None
    _always: set[str] = field(default_factory=set)

    def asked_seconds(self) -> float:
        """That the person has taken so far."""
        return 0.0 if self.person is None else self.person.seconds()

    def policy(self, name: str) -> Policy:
        fits = [policy for pattern, policy in self.rules if fnmatchcase(name, pattern)]
        return fits[-1] if fits else "auto" if name in HARMLESS else "ask"

    def refusal(self, name: str, arguments: Mapping[str, Any]) -> str | None:
        """Why a call must not be made; None: it may."""
        policy = self.policy(name)
        if policy == "never":
            return f"{name} must not be called"
        if policy == "auto" or name in self._always:
            return None
        if self.person is None:
            return NO_TERMINAL
        shown = HIDDEN.sub("\ufffd", json.dumps(dict(arguments), ensure_ascii=False, indent=1))
        said = self.person(f"{name} {shown}\nAllow this call? [y]es, [a]lways, [n]o: ")
        if said.strip().lower() in ("a", "always"):
            self._always.add(name)
            return None
        return None if said.strip().lower() in ("y", "yes") else "the person refused this call"


def rules_of(given: Sequence[str]) -> list[tuple[str, Policy]]:
    """Rules from `NAME=POLICY`, where a name may have `*`, or from a policy for all.

    Raises:
        SettingError: one is neither.
    """
    rules: list[tuple[str, Policy]] = []
    for one in given:
        name, _, policy = one.rpartition("=")
        known = next((known for known in POLICIES if known == policy), None)
        if known is None:
            raise SettingError(f"approve: {one!r} is not NAME=ask, NAME=auto or NAME=never")
        rules.append((name or "*", known))
    return rules


def terminal() -> Person | None:
    """The person at the terminal; None if there is none. Standard output is left to the answer."""
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        return None

    def ask(text: str) -> str:
        sys.stderr.write(text)
        sys.stderr.flush()
        return _line(sys.stdin.fileno())

    return Person(ask)


def _line(terminal: int) -> str:
    """The next line that is typed, with its end; empty at the end of the input. What was typed
    before is dropped: it was no answer to this.
    """
    with suppress(ImportError):  # Windows
        import termios

        termios.tcflush(terminal, termios.TCIFLUSH)
    data = b""
    while not data.endswith(b"\n") and (part := os.read(terminal, 4096)):
        data += part
    return data.decode(errors="replace")
