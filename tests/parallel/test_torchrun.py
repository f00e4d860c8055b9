"""Which failures of ranks are final, and with which code a job ends."""

import inspect
import signal

import pytest
from torch.distributed.elastic.agent.server.api import RunResult, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler

from culm.exits import AGAIN, DIVERGED, IN_USE, LOST_RANK, OTHER, REFUSED
from culm.parallel import torchrun


def failed(*codes: int) -> dict[int, ProcessFailure]:
    """Of so many ranks, in one second."""
    found = {}
    for rank, code in enumerate(codes):
        found[rank] = ProcessFailure(rank, 100 + rank, code, "<N/A>")
        found[rank].timestamp = 7
    return found


@pytest.mark.parametrize(
    ("codes", "left"),
    [((REFUSED, OTHER), 0), ((OTHER, IN_USE), 0), ((2,), 0), ((DIVERGED, OTHER), 3),
     ((-9, OTHER), 3), ((AGAIN, AGAIN), 3), ((LOST_RANK,), 3)],
)  # fmt: skip
def test_what_would_fail_again_is_not_started_again(
    codes: tuple[int, ...], left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = RunResult(WorkerState.FAILED, failures=failed(*codes))
    monkeypatch.setattr(LocalElasticAgent, "_monitor_workers", lambda self, group: result)
    agent = torchrun.Agent.__new__(torchrun.Agent)  # one that starts nothing
    agent._remaining_restarts = 3
    assert agent._monitor_workers(None) is result
    assert agent._remaining_restarts == left


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ChildFailedError("culm", failed(OTHER, REFUSED)), REFUSED, ""),
        (ChildFailedError("culm", failed(OTHER, DIVERGED)), DIVERGED, ""),
        (ChildFailedError("culm", failed(OTHER, -9)), 137, "culm: rank 1 was ended by SIGKILL"),
        (SignalException("", signal.SIGTERM), 143, ""),
    ],
    ids=["refused", "diverged", "killed", "SIGTERM"],
)
def test_a_job_ends_with_the_code_of_the_rank_that_failed(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    def ended(arguments: list[str]) -> None:
        raise error

    monkeypatch.setattr(torchrun.run, "main", ended)
    monkeypatch.setattr(torchrun.api, "LocalElasticAgent", LocalElasticAgent)  # put back afterwards
    with pytest.raises(SystemExit) as stopped:
        torchrun.main([])
    assert stopped.value.code == code
    assert capsys.readouterr().err.strip() == said
    assert torchrun.api.LocalElasticAgent is torchrun.Agent


def test_torch_still_has_what_is_changed_here() -> None:
    """torchrun takes the agent from this name, and counts restarts under that one."""
    assert "LocalElasticAgent(" in inspect.getsource(torchrun.api.launch_agent)
    agent = inspect.getsource(LocalElasticAgent._invoke_run)
    assert "self._remaining_restarts > 0" in agent
    meeting = inspect.getsource(DynamicRendezvousHandler.next_rendezvous)
    assert "if self._bootstrap_store_info is None" in meeting
    assert "self._rendezvous(" in inspect.getsource(LocalElasticAgent._initialize_workers)
