"""Attempts to get out of the sandbox reach nothing; without it, they reach what they aim at."""

import os
import time
from pathlib import Path

import pytest
from attempts import OTHERS, ROOT, SAFE
from canaries import Canaries

from culm.sandbox.outcome import Outcome

YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")
TRACED = ("ptrace", "open the memory of a process")
EFFECTIVE = SAFE | (ROOT if os.name == "posix" and os.geteuid() == 0 else {})


@pytest.mark.parametrize("name", SAFE | ROOT | OTHERS)
def test_an_attempt_reaches_nothing(name: str, in_sandbox, canaries: Canaries, monkeypatch) -> None:
    monkeypatch.setenv("CANARY", canaries.token)
    outcome: Outcome = in_sandbox(canaries.program((SAFE | ROOT | OTHERS)[name]))
    if "daemon" in name or "kill" in name:  # its effect may come later
        time.sleep(0.4)
    assert outcome.status != "refused", outcome
    assert canaries.touched(outcome.stdout + outcome.stderr) == [], outcome


@pytest.mark.parametrize("name", EFFECTIVE)
def test_the_attempt_succeeds_without_a_sandbox(name: str, canaries: Canaries) -> None:
    if name in TRACED and YAMA.exists() and YAMA.read_text().strip() != "0":
        pytest.skip("this kernel lets processes trace their children alone")
    printed = canaries.plainly(EFFECTIVE[name])
    end = time.monotonic() + 10
    while not (reached := canaries.touched(printed)) and time.monotonic() < end:
        time.sleep(0.05)
    assert reached, printed
