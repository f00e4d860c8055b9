"""The data-parallel ranks that share a step: how many, and how they add numbers up."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as distributed


@dataclass(frozen=True)
class Ranks:
    """rank: this process; count: how many ranks hold different data.

    patient: a group in which a rank may be waited for as long as it takes to prepare a corpus.
    """

    rank: int = 0
    count: int = 1
    patient: distributed.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, values: list[float], device: torch.device | str = "cpu") -> list[float]:
        """Element-wise sum over the ranks, in float64."""
        if self.count == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        distributed.all_reduce(tensor)
        return tensor.tolist()

    def wait(self) -> None:
        """Until every rank is here."""
        if self.count > 1:
            distributed.barrier(self.patient)
