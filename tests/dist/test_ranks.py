"""The same run file on one rank and on two: the same steps."""

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from culm.run import read_run, train
from culm.train.hooks import read_metrics

STAGES = ("pretrain", "sft", "dpo", "grpo")
GRID = list(itertools.product(STAGES, (False, True), ("ddp", "fsdp")))
# Every stage, both kinds of training and both layouts, each met twice.
CUT = [
    ("pretrain", False, "fsdp"),
    ("sft", True, "ddp"),
    ("dpo", True, "fsdp"),
    ("grpo", False, "ddp"),
]


def on_two_ranks(*runs: str) -> None:
    """Runs (a file, settings after commas), one after the other in one pair of processes."""
    script = Path(__file__).with_name("ranks.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    done = subprocess.run(
        [*command, str(script), *runs],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]


def compare(run_file: Callable[..., Path], cells: list[tuple[str, bool, str]]) -> None:
    files = {cell: run_file(cell[0], adapter=cell[1], steps=3) for cell in cells}
    on_two_ranks(*(f"{file},dist.data={cell[2]},folder={file}-two" for cell, file in files.items()))
    for cell, file in files.items():
        config, _ = read_run(str(file))
        train(config)
        one = read_metrics(Path(config.folder) / "metrics.jsonl")
        two = read_metrics(Path(f"{file}-two") / "metrics.jsonl")
        assert [line["step"] for line in two] == [1, 2, 3]
        for a, b in zip(one, two, strict=True):
            for name in a.keys() - {"seconds"}:
                assert b[name] == pytest.approx(a[name], rel=1e-4, abs=1e-5), (cell, name, a, b)


def test_two_ranks_follow_one(run_file: Callable[..., Path]) -> None:
    compare(run_file, CUT)


@pytest.mark.slow
def test_two_ranks_follow_one_in_every_cell(run_file: Callable[..., Path]) -> None:
    compare(run_file, GRID)
