"""torchrun that knows how a run ends: `python -m culm.parallel.torchrun`, with its arguments.

torchrun starts a failed job again whatever it failed of, and ends with 1. This one does not start
again what would fail again (`culm.exits.FINAL`), and ends with the code of the rank that failed
first. Its ranks meet in a new store at each start. Everything else is torchrun's.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping

from torch.distributed import run
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler
from torch.distributed.launcher import api

from culm.exits import FINAL, OTHER
from culm.parallel.launch import NEW_STORE


class Agent(LocalElasticAgent):
    """Starts the ranks of a machine, and again if they fail, unless that is final."""

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        """Have a new store for the ranks, where machines meet by c10d. torch would keep the first
        one for all starts: a machine that joins later waits for its address in vain, and each
        machine counts its own starts.
        """
        handler = worker_group.spec.rdzv_handler
        if isinstance(handler, DynamicRendezvousHandler):
            handler._bootstrap_store_info = None
            os.environ[NEW_STORE] = "1"  # for the ranks
        super()._rendezvous(worker_group)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result = super()._monitor_workers(worker_group)
        if any(failure.exitcode in FINAL for failure in result.failures.values()):
            self._remaining_restarts = 0
        return result


def first_of(failures: Mapping[int, ProcessFailure]) -> tuple[int, ProcessFailure]:
    """The rank whose failure says most: the others lost it within the same second."""
    return min(
        failures.items(),
        key=lambda one: (
            one[1].exitcode not in FINAL, one[1].timestamp, one[1].exitcode == OTHER
        ),
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Run until the ranks have finished; exits with the code of the one that failed first, and with
    128 and the number of a signal that ended it or this process.
    """
    api.LocalElasticAgent = Agent  # type: ignore[misc]  # torchrun has no setting for it
    try:
        run.main(arguments)
    except ChildFailedError as error:
        rank, failure = first_of(error.failures)
        if failure.exitcode < 0:  # it could say nothing
            name = signal.Signals(-failure.exitcode).name
            sys.stderr.write(f"culm: rank {rank} was ended by {name}\n")
        sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)
    except SignalException as error:
        sys.exit(128 + error.sigval)


if __name__ == "__main__":
    main()
