"""A rank that stands still is named by the others, which end; a suspended job goes on."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from culm.parallel import watch

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


def start(*arguments: str) -> list[subprocess.Popen]:
    """Two ranks, which have joined."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
    given = {
        **os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd()),
    }  # fmt: skip
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, *arguments], env={**given, "RANK": str(rank)},
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
        assert ("culm/parallel/ranks.py line" if waits else "in main, ") in said
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


def test_a_minute_is_enough() -> None:
    assert watch.SILENCE + watch.BEAT < 70
