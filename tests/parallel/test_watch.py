"""A rank that stands still is named by the others, which end; a suspended job goes on."""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from culm.parallel import watch
from culm.parallel.pulse import Pulse

TESTS = Path(__file__).parents[1]

RANK = """
import sys, time
from culm.parallel import launch, watch
watch.BEAT, watch.SILENCE, watch.TICK = 0.2, 3.0, 0.1

def main():
    with launch.process_group("cpu") as ranks:
        print("joined", flush=True)
        until = time.monotonic() + float(sys.argv[2])
        while ranks.sum([time.monotonic() - until])[0] < 0:
            if sys.argv[1] == "waiting" and ranks.rank == 0:
                time.sleep(600)  # the writer prepares a corpus
            ranks.wait()
    print("done", flush=True)

main()
"""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")


def start(*arguments: str, script: str = RANK) -> list[subprocess.Popen]:
    """Two ranks, which have joined."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
    given = {
        **os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join((str(Path.cwd()), str(TESTS))),
    }  # fmt: skip
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", script, *arguments], env={**given, "RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    for process in ranks:
        assert process.stdout is not None
        assert process.stdout.readline() == "joined\n"
    time.sleep(0.5)
    return ranks


@pytest.mark.parametrize("work", ["steps", pytest.param("waiting", marks=pytest.mark.slow)])
@pytest.mark.parametrize("stopped", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_stopped_rank_is_named(stopped: int, work: str) -> None:
    """Rank 0 holds the store through which the ranks hear of each other."""
    ranks = start(work, "600")
    try:
        ranks[stopped].send_signal(signal.SIGSTOP)
        said = ranks[1 - stopped].communicate(timeout=30)[1]
        assert ranks[1 - stopped].returncode == 8
        assert f"no sign of life for 3 seconds from rank {stopped} (last seen in " in said
        waits = work == "steps" or stopped == 1
        assert ("culm/parallel/" if waits else "in main, ") in said
    finally:
        for process in ranks:
            process.kill()
            process.communicate()


@pytest.mark.slow
def test_a_job_that_is_suspended_goes_on() -> None:
    ranks = start("steps", "6")
    for process in ranks:
        process.send_signal(signal.SIGSTOP)
    time.sleep(4)
    for process in ranks:
        process.send_signal(signal.SIGCONT)
    for process in ranks:
        said = process.communicate(timeout=30)
        assert (process.returncode, said[0]) == (0, "done\n"), said


HANG = """
import sys, time
from culm.objective.next_token import NextToken
from culm.optim.adamw import AdamW
from culm.optim.schedule import Constant
from culm.parallel import launch, watch
from culm.parallel.parallelize import parallelize
from culm.train.trainer import Trainer
from culm.train.update import Update
from learning import Given
import tiny

watch.BEAT, watch.SILENCE, watch.TICK = 0.2, 2.0, 0.1
WHAT, WHERE = sys.argv[1], int(sys.argv[2])

class Slow(Given):
    def step(self, number):
        if ranks.process == WHERE and number == (0 if WHAT == "first" else 5):
            if WHAT == "data":
                time.sleep(600)
            if WHAT == "first":
                time.sleep(4)
            with ranks.pulse.waiting():
                time.sleep(4 if WHAT == "declared" else 0)
        return super().step(number)

def hang(module, inputs):
    if WHAT == "forward" and ranks.process == WHERE and ranks.pulse.steps == 5:
        time.sleep(600)

def listen(event):
    if WHAT == "listener" and ranks.process == WHERE and event.step == 5:
        time.sleep(4)

with launch.process_group("cpu") as ranks:
    print("joined", flush=True)
    objective = NextToken().build(tiny.model(), None, 0)
    objective.register_forward_pre_hook(hang)
    update = Update(parallelize(objective, ranks), AdamW().build(objective))
    Trainer(update, Constant(), listener=listen).fit(Slow([tiny.rows()]), 8)
print("done", flush=True)
"""


@pytest.mark.parametrize(
    ("what", "rank", "function", "place"),
    [
        ("data", 1, "step", "in _given, culm/train/trainer.py"),
        pytest.param(
            "forward",
            0,
            "hang",
            "in _forward, culm/parallel/parallelize.py",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_rank_that_sleeps_is_named_with_its_stack(
    what: str, rank: int, function: str, place: str
) -> None:
    ranks = start(what, str(rank), script=HANG)
    said = [process.communicate(timeout=60)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [8, 8], said
    assert f"rank {rank} ({place} line " in said[0]
    assert "hangs: no new phase of a step for " in said[0]
    assert f"the stack of rank {rank}:" in said[rank]
    assert f" in {function}\n" in said[rank]
    assert "the stack" not in said[1 - rank]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["first", "declared", "listener"])
@pytest.mark.parametrize("rank", [0, 1])
def test_what_may_take_long_is_no_hang(what: str, rank: int) -> None:
    """The first step, a declared wait, and an evaluation, a save or a tracker, of one rank."""
    for process in start(what, str(rank), script=HANG):
        said = process.communicate(timeout=60)
        assert (process.returncode, said[0]) == (0, "done\n"), said


def sign(place: tuple[int, int], still: float, limit: float = 60.0) -> watch.Sign:
    return watch.Sign(1, place, still, limit, "in a line")


@pytest.mark.parametrize(
    ("signs", "ranks"),
    [
        ([sign((5, 3), 61), sign((5, 1), 61), sign((5, 3), 61)], [1]),
        ([sign((5, 3), 61), sign((5, 1), 0), sign((5, 3), 61)], []),  # rank 1 waits, or has moved
        ([sign((5, 3), 61), sign((5, 3), 61)], [0, 1]),
        ([sign((5, 3), 61), sign((5, 3), 59)], []),
        ([sign((5, 3), 99), sign((5, 1), 99, limit=100.0)], []),  # its phases are as long as that
    ],
)
def test_who_hangs_is_behind(signs: list[watch.Sign], ranks: list[int]) -> None:
    assert watch.hanging(dict(enumerate(signs))) == ranks


def test_a_sign_that_is_old_ends_nothing() -> None:
    """Rank 1 went on as rank 0 did, and has not said so yet."""
    suspicion, old = watch.Suspicion(), {1: sign((5, 1), 61)}
    assert not any(suspicion.lasts(old) for _ in range(9))
    assert not suspicion.lasts({1: replace(old[1], count=2)})
    assert suspicion.lasts({1: replace(old[1], count=3)})
    assert not suspicion.lasts({})
    assert not suspicion.lasts({1: replace(old[1], count=4)})
    assert not suspicion.lasts({1: replace(old[1], count=9, place=(5, 2))})


def test_the_limit_follows_the_longest_phase() -> None:
    pulse = Pulse()
    still = watch.Stillness(pulse)

    def step(seconds: float) -> float:
        """The longest that it stood still in this step."""
        found = 0.0
        with pulse.step():
            for _ in range(int(seconds / watch.TICK)):
                still.tick()
                found = max(found, still.seconds)
        still.tick()
        return found

    assert (step(500), still.limit) == (0, 60)  # the first one compiles
    assert (step(20), still.limit) == (0, 195)  # the second shows what is usual
    assert step(100) == pytest.approx(100, abs=1)
    with pulse.step(), pulse.waiting():
        for _ in range(1000):
            still.tick()
        assert still.seconds == 0
    assert still.limit == pytest.approx(1000, abs=10)
