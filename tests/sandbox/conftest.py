"""A sandbox of each mechanism that works here; tests of others are skipped."""

import secrets
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from canaries import Canaries, alive

from culm.sandbox import worker
from culm.sandbox.limits import Limits
from culm.sandbox.mechanism import ORDER, obstacle
from culm.sandbox.outcome import Outcome, Program

collect_ignore_glob = [] if sys.platform == "linux" else ["test_*.py"]
Run = Callable[..., Outcome]


@pytest.fixture(scope="session", params=ORDER)
def mechanism(request: pytest.FixtureRequest) -> str:
    if (why := obstacle(request.param)) is not None:
        pytest.skip(f"{request.param}: {why}")
    return request.param


@pytest.fixture(scope="session")
def marker(request: pytest.FixtureRequest) -> Iterator[str]:
    """In the environment of everything that a sandbox starts."""
    word = secrets.token_hex(8)
    worker.ENVIRONMENT["MARKER"] = word
    yield word
    del worker.ENVIRONMENT["MARKER"]


@pytest.fixture(scope="module")
def in_sandbox(mechanism: str, marker: str) -> Iterator[Run]:
    """Runs a program, and checks that nothing of it is left."""
    workers: dict[Limits, worker.Worker] = {}

    def run(code: str, stdin: str = "", **limits: object) -> Outcome:
        given = Limits(**{"seconds": 5, "cpu_seconds": 3, "mechanism": mechanism, **limits})
        if given not in workers:
            workers[given] = worker.Worker(given, mechanism)
        outcome = workers[given].run(Program(code, stdin))
        started = {one._process.pid for one in workers.values() if one._process}
        deadline = time.monotonic() + 2
        while left := set(alive(marker)) - started:
            assert time.monotonic() < deadline, f"processes {left} are left"
            time.sleep(0.01)
        return outcome

    yield run
    for one in workers.values():
        one.close()
    assert not alive(marker)


@pytest.fixture
def canaries(tmp_path: Path) -> Iterator[Canaries]:
    (tmp_path / "home").mkdir()
    made = Canaries(tmp_path / "home")
    yield made
    made.close()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Limits, verdicts and workers are the same code for both: the slower one has slow tests."""
    shared = ("test_limits", "test_verdict", "test_workers")
    for item in items:
        if item.path.stem in shared and "[bubblewrap" in item.name:
            item.add_marker(pytest.mark.slow)
