"""Which mechanism can confine programs on this machine: found by running one in it."""

from __future__ import annotations

import functools
import platform
import shutil
import sys
from typing import get_args

from culm.config import SettingError
from culm.sandbox import seccomp
from culm.sandbox.limits import Limits, Mechanism
from culm.sandbox.outcome import Program
from culm.sandbox.worker import Worker

ORDER: tuple[Mechanism, ...] = ("namespaces", "bubblewrap")
ADVICE = (
    "run on Linux with user namespaces or bubblewrap (apt install bubblewrap), or accept the risk "
    "with mechanism=unconfined"
)


@functools.cache
def obstacle(mechanism: Mechanism) -> str | None:
    """Why a mechanism does not work here; None if it works."""
    if sys.platform == "win32":
        return "Windows cannot fork a process"
    if mechanism != "unconfined" and sys.platform != "linux":
        return f"there are no Linux namespaces on {sys.platform}"
    if mechanism != "unconfined" and not seccomp.supported():
        return f"there is no filter of system calls for {platform.machine()}"
    if mechanism == "bubblewrap" and shutil.which("bwrap") is None:
        return "bwrap is not installed"
    with Worker(Limits(), mechanism) as worker:
        outcome = worker.run(Program("pass"))
    if outcome.passed:
        return None
    return " ".join(f"{outcome.reason} {outcome.stderr}".split()).rstrip(".")


def choose(limits: Limits) -> Mechanism:
    """The mechanism to use.

    Raises:
        SettingError: it does not work here, or none does.
    """
    wanted = ORDER if limits.mechanism == "auto" else (limits.mechanism,)
    found = {name: obstacle(name) for name in wanted}
    for name, why in found.items():
        if why is None:
            return name
    tried = "; ".join(f"{name}: {why}" for name, why in found.items())
    raise SettingError(
        f"sandbox.mechanism: generated programs cannot be confined here ({tried}); {ADVICE}"
    )


def summary() -> str:
    """One line about this machine, for `culm doctor`."""
    found = {name: obstacle(name) for name in get_args(Mechanism) if name != "unconfined"}
    works = [name for name in ORDER if found[name] is None]
    if works:
        return f"{' and '.join(works)} confine generated programs"
    tried = "; ".join(f"{name}: {why}" for name, why in found.items())
    return f"none, so generated programs are refused ({tried}); {ADVICE}"
