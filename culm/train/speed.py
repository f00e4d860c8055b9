"""How fast a run is, and what it costs: metrics of each step that depend on the machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from culm.train.memory import peak_bytes
from culm.train.trainer import Timing


@dataclass(frozen=True)
class Speed:
    """tokens_per_second: of all ranks, padding excluded. waiting: share of the step that passed
    until its data were there. peak_bytes: of memory, of this process since it started; on a GPU, of
    the tensors there. mfu: model FLOPs utilisation (arXiv 2204.02311), the FLOP/s that the model
    needs as a share of the peak of all devices.

    device: of this process. flops_per_token: that the model needs, without what activation
    checkpointing computes again; None: unknown, and then there is no mfu. peak: FLOP/s of all
    devices.
    """

    device: torch.device
    flops_per_token: float | None = None
    peak: float = 0.0

    def __call__(self, timing: Timing) -> Mapping[str, float]:
        rate = timing.tokens / timing.seconds
        found = {
            "tokens_per_second": rate,
            "waiting": timing.fetched / timing.seconds,
            "peak_bytes": float(self._peak_bytes()),
        }
        if self.flops_per_token is not None:
            found["mfu"] = rate * self.flops_per_token / self.peak
        return found

    def _peak_bytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return peak_bytes()
