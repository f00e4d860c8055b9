"""Which tool calls need the approval of a person."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from culm.config import SettingError
from culm.tools.function import HIDDEN

Policy = Literal["ask", "auto", "never"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
# These cannot change or send anything: a sandbox, databases that are read, texts of a folder.
HARMLESS = ("python", "sql", "describe_tables", "search", "open")
NO_TERMINAL = "a person must approve this call, and there is no terminal to ask at"
Ask = Callable[[str], str]


@dataclass
class Approvals:
    """rules: pairs (pattern of names, policy), of which the last that fits counts; without one,
    `auto` for tools that can do no harm, else `ask`. ask: shows a text and gives what the person
    answers; None: there is nobody.
    """

    rules: Sequence[tuple[str, Policy]] = ()
    ask: Ask | None = None
    _always: set[str] = field(default_factory=set)

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
        if self.ask is None:
            return NO_TERMINAL
        shown = HIDDEN.sub("\ufffd", json.dumps(dict(arguments), ensure_ascii=False, indent=1))
        said = self.ask(f"{name} {shown}\nAllow this call? [y]es, [a]lways, [n]o: ")
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


def terminal() -> Ask | None:
    """Asks a person; None if there is no terminal. Standard output is left to the answer."""
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        return None

    def ask(text: str) -> str:
        sys.stderr.write(text)
        sys.stderr.flush()
        return sys.stdin.readline()

    return ask
