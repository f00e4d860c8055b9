"""The ranks that share a step: which one this is, and sums over those with other rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TypeVar, cast

import torch
import torch.distributed as distributed

from culm.parallel.mesh import Mesh
from culm.parallel.pulse import Pulse

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """rank, count: this process among those that hold different data, the mesh axis "data".

    writer: whether this process writes files and speaks; one of all processes does. mesh: all of
    them; None for a single one. shard: number of the part of the weights that this process holds,
    among those with other parts. patient: a group whose members may be waited for as long as it
    takes to prepare a corpus. pulse: how far this process has come, for those that watch it.
    """

    rank: int = 0
    count: int = 1
    writer: bool = True
    mesh: Mesh | None = None
    shard: int = 0
    patient: distributed.ProcessGroup | None = None
    pulse: Pulse = field(default_factory=Pulse, compare=False)

    def sum(self, values: list[float], device: torch.device | str = "cpu") -> list[float]:
        """Element-wise sum over the data ranks, in float64."""
        if self.count == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        distributed.all_reduce(tensor, group=self._group)
        return tensor.tolist()

    def gather(self, value: T) -> list[T]:
        """The value of each data rank, in order, on every rank; pickled, so for small things."""
        if self.count == 1:
            return [value]
        found: list[T] = [value] * self.count
        distributed.all_gather_object(found, value, group=self._group)
        return found

    def any(self, flag: bool, device: torch.device | str = "cpu") -> bool:
        """Whether the flag is set in any process."""
        if self.processes == 1:
            return flag
        tensor = torch.tensor(float(flag), device=device)
        distributed.all_reduce(tensor)
        return bool(tensor)

    def agreed(self, values: list[float], device: torch.device | str = "cpu") -> list[float]:
        """Those of the first process, on every one, which may then decide by them."""
        if self.processes == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        distributed.broadcast(tensor, 0)
        return tensor.tolist()

    def wait(self) -> None:
        """Until every process is here."""
        if self.processes > 1:
            distributed.barrier(self.patient)

    @property
    def process(self) -> int:
        """The number of this process among all of the job, whatever the axes of the mesh."""
        return 0 if self.patient is None else distributed.get_rank(self.patient)

    @property
    def processes(self) -> int:
        """Of the job."""
        return 1 if self.patient is None else distributed.get_world_size(self.patient)

    def everyone(self, value: T) -> list[T]:
        """The value of each process of the job, in order, on every one; waits as long as it takes.

        Pickled, so for small things.
        """
        found: list[T] = [value] * self.processes
        if self.patient is not None:
            # Over this group: the thread that writes a checkpoint has ranks with another one, since
            # calls of two threads in one group could meet in any order.
            distributed.all_gather_object(found, value, group=self.patient)
        return found

    def alike(self, value: T) -> T:
        """That of the first process with these rows, on all that compute them together."""
        if self.processes == self.count:
            return value
        found = self.everyone((self.rank, value))
        return next(given for rank, given in found if rank == self.rank)

    def attempt(self, work: Callable[[], T]) -> list[T]:
        """Do something on each process; the results of all, in order, on every one.

        Raises:
            Exception: what `work` raised here.
            RankFailed: it failed on another process alone.
        """
        result, failed = None, None
        try:
            result = work()
        except Exception as error:  # whatever it is, the others wait for this process
            failed = error
        found = self.everyone((result, None if failed is None else str(failed)))
        if failed is not None:
            raise failed
        for process, (_, message) in enumerate(found):
            if message is not None:
                raise RankFailed(f"rank {process}: {message}")
        return [cast(T, one) for one, _ in found]

    @property
    def _group(self) -> distributed.ProcessGroup | None:
        return None if self.mesh is None else self.mesh.data.get_group()


class RankFailed(RuntimeError):
    """Another rank has failed, and the message says how."""


@dataclass(frozen=True)
class AgreeingRanks(Ranks):
    """Ranks that agree before each exchange that none of them failed. So all of them give up what
    one of them cannot do, and none waits for it.

    Each rank calls `agree` at the end too, with its error if it has one.
    """

    inner: Ranks = Ranks()

    @classmethod
    def of(cls, ranks: Ranks) -> AgreeingRanks:
        """The same ranks."""
        known = {one.name: getattr(ranks, one.name) for one in fields(Ranks)}
        return cls(**known, inner=ranks)

    def sum(self, values: list[float], device: torch.device | str = "cpu") -> list[float]:
        self.agree()
        return self.inner.sum(values, device)

    def gather(self, value: T) -> list[T]:
        self.agree()
        return self.inner.gather(value)

    def everyone(self, value: T) -> list[T]:
        self.agree()
        return self.inner.everyone(value)

    def agree(self, error: str | None = None) -> None:
        """Say whether this rank failed.

        Raises:
            RankFailed: another one did, and this one did not.
        """
        errors = [one for one in self.inner.everyone(error) if one is not None]
        if errors and error is None:
            raise RankFailed(errors[0])
