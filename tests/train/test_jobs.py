"""What takes a minute: the demonstration at its full size, and compiled training."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_bad_input import go

from culm.files import read_lines

pytestmark = pytest.mark.slow


def test_the_demo_keeps_its_promises(tmp_path: Path) -> None:
    """Held-out loss below 1.6 nats per byte, within two minutes of training and 1 GB."""
    line = [sys.executable, "-m", "culm", "train", "demo", f"folder={tmp_path}/demo"]
    subprocess.run(line, check=True, cwd=tmp_path, capture_output=True)
    results = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert results["loss"] < 1.6
    assert results["peak_bytes"] < 1e9
    report = (tmp_path / "demo" / "report.md").read_text()
    assert all(f"Temperature {t}" in report for t in (0.5, 0.8, 1.0))
    # The time is promised for two cores that do nothing else.
    assert results["seconds"] < 240


def test_compiled_training_learns_the_same_and_answers_uncompiled(
    stage: Callable[..., dict], tmp_path: Path
) -> None:
    """Rollouts have other shapes in every step; to compile each would take longer than to train."""
    rewards: dict[bool, list[Any]] = {}
    for compiled in (False, True):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        folder = tmp_path / str(compiled)
        go(
            {**stage("grpo", steps=3, batch_size=8, micro_batch_size=8), "folder": str(folder)},
            compile=compiled,
        )
        lines = read_lines(folder / "metrics.jsonl")
        rewards[compiled] = [(line["reward"], line["completion_tokens"]) for line in lines]
    assert rewards[True] == rewards[False]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 8
