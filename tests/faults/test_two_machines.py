"""A job on two machines: two network namespaces with names and addresses of their own, each with
its torchrun. What is lost comes back, and the run is the one that was never disturbed, bit for bit.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from stages import weights_in

from culm.train.checkpoint.folder import steps_in

NAMES = ("culm-a", "culm-b")
STEPS, LAST = 40, 8  # of a run; the newest checkpoint there must be before something is lost


def may_divide() -> bool:
    if shutil.which("ip") is None or shutil.which("unshare") is None or os.geteuid() != 0:
        return False
    return not subprocess.run(["unshare", "--net", "--uts", "--mount", "true"]).returncode


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not may_divide(), reason="needs root, ip and network namespaces"),
]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Path]:
    """Two namespaces with a cable; gives the file of their names, which each sees as /etc/hosts."""
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n10.77.0.1 culm-a\n10.77.0.2 culm-b\n")
    try:
        for name in NAMES:
            ip("netns", "add", name)
        ip("link", "add", "cable", "netns", "culm-a", "type", "veth", "peer", "cable", "netns",
           "culm-b")  # fmt: skip
        for number, name in enumerate(NAMES, 1):
            ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")
        yield hosts
    finally:
        for name in NAMES:
            subprocess.run(["ip", "netns", "delete", name])


class Machine:
    """The torchrun of one machine, as `culm launch` writes it."""

    def __init__(self, name: str, hosts: Path, folder: Path, run: list[str], nodes: str) -> None:
        self.log = folder / f"{name}-{time.monotonic_ns()}.log"
        line = 'hostname "$1" && mount --bind "$2" /etc/hosts && shift 2 && exec "$@"'
        torchrun = [
            sys.executable, "-m", "culm.parallel.torchrun", "--nnodes", nodes,
            "--nproc-per-node", "1", "--max-restarts", "3", "--rdzv-backend", "c10d",
            "--rdzv-endpoint", "culm-a:29400", "--rdzv-id", "job", "--monitor-interval", "0.2",
            "-m", "culm", "train", *run,
        ]  # fmt: skip
        inside = ["unshare", "--uts", "bash", "-c", line, "-", name, str(hosts), *torchrun]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", name, *inside], stdout=log, stderr=log,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())},
            )  # fmt: skip

    def rank(self) -> int:
        """The process that trains."""
        children = subprocess.run(
            ["pgrep", "--parent", str(self.process.pid)], capture_output=True, text=True
        )
        return int(children.stdout.split()[0])

    def lose(self) -> None:
        """All of its processes at once; ranks are in sessions of their own."""
        rank = self.rank()
        self.process.kill()
        os.kill(rank, signal.SIGKILL)
        self.process.wait()

    def end(self) -> int:
        return self.process.wait(240)

    def text(self) -> str:
        return self.log.read_text()[-4000:]


@pytest.fixture
def start(
    machines: Path, tmp_path: Path, run_file: Callable[..., Path]
) -> Iterator[Callable[..., Machine]]:
    started: list[Machine] = []
    file = run_file("sft", steps=STEPS, checkpoint={"every_steps": 2, "asynchronous": True})

    def one(name: str, folder: str, nodes: str = "2") -> Machine:
        run = [str(file), "parallel.data=fsdp", f"folder={tmp_path / folder}"]
        started.append(Machine(name, machines, tmp_path, run, nodes))
        return started[-1]

    yield one
    for machine in started:
        if machine.process.poll() is None:
            machine.process.terminate()
            machine.process.wait(60)


def until_trained(folder: Path, machine: Machine, step: int = LAST) -> None:
    until = time.monotonic() + 120
    while max(steps_in(folder), default=0) < step:
        assert machine.process.poll() is None, machine.text()
        assert time.monotonic() < until, machine.text()
        time.sleep(0.02)


@pytest.mark.parametrize("lost", ["a rank", "the second machine", "the first machine"])
def test_what_is_lost_comes_back(lost: str, start: Callable[..., Machine], tmp_path: Path) -> None:
    undisturbed = [start(name, "whole") for name in NAMES]
    assert [machine.end() for machine in undisturbed] == [0, 0], undisturbed[0].text()
    first, second = (start(name, "run") for name in NAMES)
    until_trained(tmp_path / "run", first)
    if lost == "a rank":
        os.kill(second.rank(), signal.SIGKILL)
    elif lost == "the second machine":
        second.lose()
        second = start(NAMES[1], "run")  # by the scheduler
    else:  # where they meet: the other one ends, too
        first.lose()
        assert second.end() != 0
        first, second = (start(name, "run") for name in NAMES)
    assert first.end() == 0, first.text()
    assert second.end() == 0, second.text()
    assert "Resuming" in first.text() + second.text()
    ours, theirs = weights_in(tmp_path / "run"), weights_in(tmp_path / "whole")
    assert theirs
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


@pytest.mark.parametrize("seconds", [5, 100])  # what is missed for a minute is lost
def test_a_network_that_is_cut_and_comes_back(
    seconds: int, start: Callable[..., Machine], tmp_path: Path
) -> None:
    undisturbed = [start(name, "whole") for name in NAMES]
    assert [machine.end() for machine in undisturbed] == [0, 0], undisturbed[0].text()
    first, second = (start(name, "run") for name in NAMES)
    until_trained(tmp_path / "run", first)
    ip("-n", NAMES[1], "link", "set", "cable", "down")
    time.sleep(seconds)
    ip("-n", NAMES[1], "link", "set", "cable", "up")
    again = {NAMES[0]: first, NAMES[1]: second}
    until = time.monotonic() + 400
    while any(machine.process.poll() != 0 for machine in again.values()):
        assert time.monotonic() < until, first.text() + second.text()
        for name, machine in again.items():
            if machine.process.poll() not in (None, 0):
                again[name] = start(name, "run")  # by the scheduler
        time.sleep(0.5)
    ours, theirs = weights_in(tmp_path / "run"), weights_in(tmp_path / "whole")
    assert theirs
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_a_job_of_one_or_two_machines_goes_on_with_one(
    start: Callable[..., Machine], tmp_path: Path
) -> None:
    """Elastic: what is lost need not come back. Other ranks sum in another order."""
    undisturbed = [start(name, "whole", "1:2") for name in NAMES]
    assert [machine.end() for machine in undisturbed] == [0, 0], undisturbed[0].text()
    first, second = (start(name, "run", "1:2") for name in NAMES)
    until_trained(tmp_path / "run", first)
    second.lose()
    assert first.end() == 0, first.text()
    ours, theirs = weights_in(tmp_path / "run"), weights_in(tmp_path / "whole")
    assert all((ours[name] - value).abs().max() < 1e-4 for name, value in theirs.items())
