"""Batches that take the state of another part of a run into its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from culm.batch import Batch
from culm.train.spikes import RunBatches


class Stateful(Protocol):
    def state(self) -> dict[str, Tensor]: ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue with what `state` gave; without it, as at the start."""
        ...


class WithState:
    """part: None if this run has none; what a checkpoint has of it is then dropped."""

    def __init__(self, batches: RunBatches, name: str, part: Stateful | None) -> None:
        self.batches, self.prefix, self.part = batches, f"{name}.", part

    @property
    def fingerprint(self) -> str:
        return self.batches.fingerprint

    @property
    def remarks(self) -> list[str]:
        return self.batches.remarks

    def step(self, number: int) -> list[Batch]:
        return self.batches.step(number)

    def state(self, steps: int) -> dict[str, Tensor]:
        own = {} if self.part is None else self.part.state()
        named = {f"{self.prefix}{name}": value for name, value in own.items()}
        return {**self.batches.state(steps), **named}

    def restore(self, steps: int, state: Mapping[str, Tensor]) -> None:
        own = {n.removeprefix(self.prefix): v for n, v in state.items() if self._is_own(n)}
        if self.part is not None:
            self.part.restore(own)
        self.batches.restore(steps, {n: v for n, v in state.items() if not self._is_own(n)})

    def _is_own(self, name: str) -> bool:
        return name.startswith(self.prefix)
