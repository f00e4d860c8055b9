"""Many programs at once, and workers that end before their programs."""

import threading
import time

import pytest
from canaries import alive

from culm.sandbox import view
from culm.sandbox.limits import Limits
from culm.sandbox.mechanism import ORDER, obstacle
from culm.sandbox.outcome import Program
from culm.sandbox.sandbox import run_all
from culm.sandbox.worker import Worker


def test_many_programs_at_once(mechanism, marker: str) -> None:
    limits = Limits(seconds=20, mechanism=mechanism)
    programs = [f"import time; time.sleep(0.05); print({n})" for n in range(30)]
    outcomes = list(run_all([*programs, Program("print(input())", "in")], limits, workers=3))
    assert [one.stdout for one in outcomes] == [*(f"{n}\n" for n in range(30)), "in\n"]
    assert {one.mechanism for one in outcomes} == {mechanism}
    assert not alive(marker)


def test_programs_run_at_the_same_time(mechanism) -> None:
    limits = Limits(seconds=20, mechanism=mechanism)
    started = time.monotonic()
    assert all(one.passed for one in run_all(["import time; time.sleep(1)"] * 4, limits, 4))
    assert time.monotonic() - started < 3


def test_ending_early_leaves_nothing(mechanism, marker: str) -> None:
    limits = Limits(seconds=1, mechanism=mechanism)
    outcomes = run_all(["pass"] * 3 + ["import time; time.sleep(9)"] * 3, limits, workers=2)
    assert next(outcomes).passed
    outcomes.close()
    assert not alive(marker)


@pytest.mark.parametrize("kind", [*ORDER, "unconfined"])
def test_a_killed_worker_kills_its_program(kind: str, marker: str) -> None:
    if (why := obstacle(kind)) is not None:
        pytest.skip(f"{kind}: {why}")
    worker = Worker(Limits(seconds=60), kind)
    thread = threading.Thread(target=worker.run, args=(Program("import time; time.sleep(50)"),))
    thread.start()
    while len(alive(marker)) < 3:
        time.sleep(0.01)
    assert worker._process is not None
    worker._process.kill()
    thread.join(5)
    assert not thread.is_alive()
    deadline = time.monotonic() + 3
    while alive(marker):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_worker_that_died_is_started_again(mechanism) -> None:
    with Worker(Limits(mechanism=mechanism), mechanism) as worker:
        assert worker.run(Program("pass")).passed
        assert worker._process is not None
        worker._process.kill()
        worker._process.wait()
        assert worker.run(Program("pass")).status == "refused"
        assert worker.run(Program("pass")).passed


def test_a_sandbox_that_cannot_be_set_up_is_no_verdict(mechanism, monkeypatch) -> None:
    """Neither a folder that cannot be mounted nor a failing bubblewrap makes a program fail."""
    monkeypatch.setattr(view, "folders", lambda: [("/proc", "/dev/null/x")])
    with Worker(Limits(mechanism=mechanism), mechanism) as worker:
        outcome = worker.run(Program("print(1)"))
    assert (outcome.status, outcome.exit_code, outcome.stdout) == ("refused", None, "")
    assert "could not be set up" in outcome.reason
