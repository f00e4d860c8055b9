"""Ranks that do not start are named, and waiting for them can be interrupted."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import culm.run.train as run_train
from culm.config import SettingError, parse
from culm.parallel import launch
from culm.parallel.launch import process_group
from culm.parallel.ranks import Ranks
from culm.run.settings import RunConfig

RESTARTED = """
import os, signal, sys
import torch
import torch.distributed as distributed
from culm.parallel import launch

attempt, rank, places = os.environ["TORCHELASTIC_RESTART_COUNT"], os.environ["RANK"], sys.argv[1:]

def dies(place):
    if (place, rank) == (dict(enumerate(places)).get(int(attempt)), "1"):
        os.kill(os.getpid(), signal.SIGKILL)

store = launch._store
def announced(rank):
    found = store(rank)
    found.set(f"started/{rank}", "yes")
    dies("while joining")
    return found
launch._store = announced

def main():  # a group that a global still holds when Python ends aborts the process
    with launch.process_group("cpu") as ranks:
        dies("after joining")
        total = ranks.sum([1.0 + ranks.rank])
        dies("after a sum")
        ranks.wait()
        print(f"attempt {attempt}: {total} {ranks.gather(ranks.rank)}")

dies("at the start")
main()
"""
WAITING = "from culm.parallel.launch import process_group\nwith process_group('cpu'): pass"


def free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], dict[str, str]]:
    """The environment of one rank of two, whose other one is not there."""

    def environment(rank: int) -> dict[str, str]:
        return {
            "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": free_port(),
        }  # fmt: skip

    return environment


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        (0, "of 2 ranks, these did not start within 1 seconds: 1; their own messages"),
        (1, r"rank 0 could not be reached at 127\.0\.0\.1:\d+ within 1 seconds"),
    ],
)
def test_a_rank_whose_partner_does_not_start(
    rank: int, message: str, alone: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "JOIN", 1.0)
    for name, value in alone(rank).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeError, match=message), process_group("cpu"):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_waiting_obeys_signals(rank: int, number: signal.Signals, alone: Callable) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING], env={**os.environ, **alone(rank)},
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    time.sleep(8)  # torch is imported, and it waits
    assert process.poll() is None
    process.send_signal(number)
    assert process.wait(timeout=60) != 0


def test_a_rank_without_the_shared_folder(
    stage: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**stage("sft"), "folder": str(tmp_path / "run")}

    class Elsewhere:
        def __enter__(self) -> Ranks:
            return Ranks(rank=1, writer=False)

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(run_train, "process_group", lambda device, settings: Elsewhere())
    with pytest.raises(SettingError, match=r"folder: \S+run has no run\.yaml here, .* shared"):
        run_train.train(parse(RunConfig, settings))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(
    "places",
    [
        pytest.param(("at the start",), marks=pytest.mark.slow),
        pytest.param(("while joining",), marks=pytest.mark.slow),
        ("after joining", "after a sum"),
    ],
    ids=str,
)
@pytest.mark.parametrize("meeting", ["--standalone", "--master-port"])
@pytest.mark.parametrize("torchrun", ["torch.distributed.run", "culm.parallel.torchrun"])
def test_torchrun_restarts_ranks_that_die(
    torchrun: str, meeting: str, places: tuple[str, ...], tmp_path: Path
) -> None:
    """What the ranks of an earlier attempt left in the store is not that of the next one."""
    (tmp_path / "ranks.py").write_text(RESTARTED)
    meets = [f"--master-port={free_port()}"] if meeting == "--master-port" else [meeting]
    command = [sys.executable, "-m", torchrun, "--nproc-per-node=2", *meets]
    command += [f"--max-restarts={len(places)}", "--monitor-interval=0.1"]
    done = subprocess.run(
        [*command, str(tmp_path / "ranks.py"), *places], capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count(f"attempt {len(places)}: [3.0] [0, 1]") == 2, done.stdout
