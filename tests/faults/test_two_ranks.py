"""Faults of one rank among two: the others notice, and a restarted job is the same run."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from stages import weights_in

from culm.files import read_lines
from culm.train.checkpoint.folder import steps_in

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="signals")]

RANK = """
import os, signal, sys, time
import torch
from culm.parallel.parallelize import Parallel
from culm.objective.next_token import NextTokenObjective
from culm.run.settings import read_run
from culm.run.train import train
from culm.train.trainer import Trainer
torch.set_num_threads(1)
rank, attempt = os.environ["RANK"], os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
fault, at = sys.argv[1], int(sys.argv[2])
step, gradients, now = Trainer._step, Parallel.gradients, [0]

def counted(self, batches, number, *rest):
    now[0] = number + 1
    return step(self, batches, number, *rest)

def faulty(self, batches, counts, *scale):
    here = now[0] == at and rank == "1"
    if fault in ("kill", "term") and here and attempt == "0":
        os.kill(os.getpid(), signal.SIGKILL if fault == "kill" else signal.SIGTERM)
    if fault == "flip" and here:
        with torch.no_grad():
            weight = next(p for p in self.objective.parameters() if p.requires_grad)
            weight.view(-1)[:1].view(torch.int32).bitwise_xor_(1 << 20)
    sums = gradients(self, batches, counts)
    if fault == "nan" and here:
        with torch.no_grad():
            next(p for p in self.objective.parameters() if p.grad is not None).grad.fill_(torch.nan)
    return sums

Trainer._step, Parallel.gradients = counted, faulty
if fault == "slow" and rank == "1":
    loss = NextTokenObjective.loss
    def slow(self, batch, context):
        time.sleep(0.1)
        return loss(self, batch, context)
    NextTokenObjective.loss = slow
from culm.verbs.failure import run
run(lambda: train(read_run(sys.argv[3], sys.argv[4:])[0]))
"""


def start(folder: Path, *arguments: str, restarts: int = 0) -> subprocess.CompletedProcess:
    script = folder / "rank.py"
    script.write_text(RANK)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    command += [f"--max-restarts={restarts}", "--monitor-interval=0.1", str(script)]
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=250,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip


@pytest.mark.parametrize("data", ["ddp", "fsdp"])
def test_a_killed_rank_is_restarted_to_the_bit(
    data: str, run_file: Callable[..., Path], tmp_path: Path
) -> None:
    file = run_file("sft", steps=6, checkpoint={"every_steps": 2, "asynchronous": True})
    layout = f"parallel.data={data}"
    for kind, fault in (("one", "none"), ("two", "kill")):
        done = start(
            tmp_path, fault, "4", str(file), layout, f"folder={tmp_path}/{kind}", restarts=1
        )
        assert done.returncode == 0, done.stderr[-3000:]
    assert "Resuming" in done.stderr
    ours, theirs = weights_in(tmp_path / "two"), weights_in(tmp_path / "one")
    assert theirs
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    losses = [[line["loss"] for line in read_lines(tmp_path / k / "metrics.jsonl")]
              for k in ("one", "two")]  # fmt: skip
    assert losses[0] == losses[1]


def test_a_nan_on_one_rank_ends_all_before_the_update(
    run_file: Callable[..., Path], tmp_path: Path
) -> None:
    """After the gradients were averaged, so that the other rank's own are finite."""
    file = run_file("sft", steps=6, checkpoint={"every_steps": 1})
    done = start(tmp_path, "nan", "3", str(file), f"folder={tmp_path}/run")
    assert done.returncode != 0
    assert done.stderr.count("step 3: the loss is") == 1, done.stderr[-3000:]  # once for all
    assert len(re.findall(r"exitcode\s*: 3", done.stderr)) >= 1
    assert steps_in(tmp_path / "run")[-1] == 2


def test_a_flipped_bit_of_one_rank_is_found(run_file: Callable[..., Path], tmp_path: Path) -> None:
    file = run_file("sft", steps=6, check_replicas_every=2, checkpoint={"every_steps": 1})
    done = start(tmp_path, "flip", "4", str(file), f"folder={tmp_path}/run")
    assert done.returncode != 0
    assert re.search(r"step 4: the parameter \S+ of ranks 0, 1 differs from each", done.stderr)
    assert steps_in(tmp_path / "run")[-1] == 3


def test_a_slow_rank_is_named(run_file: Callable[..., Path], tmp_path: Path) -> None:
    file = run_file("sft", steps=6, straggler={"every_steps": 3})
    done = start(tmp_path, "slow", "0", str(file), f"folder={tmp_path}/run")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "rank 1 is slow: 0." in " ".join(done.stderr.split())
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines if line.get("slowest_rank") == 1] == [3, 6]


def test_all_ranks_stop_at_the_same_step(run_file: Callable[..., Path], tmp_path: Path) -> None:
    """One rank alone gets the signal."""
    file = run_file("sft", steps=6, checkpoint={"every_steps": 100})
    done = start(tmp_path, "term", "3", str(file), f"folder={tmp_path}/run")
    assert "Stopped after step 3; the same command resumes it." in done.stderr, done.stderr[-3000:]
    assert steps_in(tmp_path / "run") == [3]
