"""Killed again and again: what `bench/kills.py` does, for a minute."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_random_kills(root: Path) -> None:
    command = [sys.executable, str(root / "bench" / "kills.py"), "--kills", "20"]
    done = subprocess.run(
        [*command, "--objectives", "sft", "ppo"], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    rows = re.findall(r"\| (\w+) \| (\d+) \| \d+ \| \d+ \| 0 \| equal \|", done.stdout)
    assert [name for name, _ in rows] == ["sft", "ppo"]
    assert all(int(kills) >= 20 for _, kills in rows)
