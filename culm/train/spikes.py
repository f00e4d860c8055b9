"""Steps whose loss or gradient norm is far above the usual: their update is left out; after too
many of them the run goes back to its last checkpoint and leaves out the data in between.

What is usual are the median and the median absolute deviation (MAD) of the last steps, which a few
spikes do not move. A number that is not finite never enters them: it would spoil a mean for as long
as it stays in the window.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Protocol

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from culm.batch import Batch
from culm.config import Config
from culm.train.judge import TrainingError
from culm.train.trainer import Batches

NORMAL = 1.4826  # MAD of a normal distribution, as a part of its standard deviation
LEAST = 1e-3  # of the median: numbers that hardly move are not judged by their noise
PREFIX = "spikes."


class SpikeConfig(Config):
    """window: steps whose median and median absolute deviation (MAD) say what is usual. warmup:
    steps before any is judged. deviations: a loss or gradient norm above the median by more
    than this many standard deviations, which the MAD estimates, is a spike; so is one that is not
    finite. skips: spikes within a window whose updates are left out; at the next one the run
    goes back. rewinds: how often it goes back to its last checkpoint, and leaves out the data
    in between, before it ends with an error; objectives that sample rollouts cannot.
    """

    window: PositiveInt = 128
    warmup: PositiveInt = 16
    deviations: PositiveFloat = 8.0
    skips: NonNegativeInt = 3
    rewinds: NonNegativeInt = 2


class TooManySpikes(TrainingError):
    """The run should go back. step: of the last spike."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


@dataclass(frozen=True)
class Fact:
    """Of a step: its loss and gradient norm."""

    loss: float
    norm: float


class Spikes:
    """Judges each step by those before it."""

    def __init__(self, settings: SpikeConfig) -> None:
        self.settings = settings
        self.usual: deque[Fact] = deque(maxlen=settings.window)
        self.skipped: deque[int] = deque()

    def judge(self, step: int, loss: float, norm: float) -> str | None:
        """Why the update of a step is left out; None if it is not.

        Raises:
            TooManySpikes: it is one more than may be left out.
        """
        reason = self._reason("loss", loss, [fact.loss for fact in self.usual]) or self._reason(
            "gradient norm", norm, [fact.norm for fact in self.usual]
        )
        if reason is None:
            self.usual.append(Fact(loss, norm))
            return None
        while self.skipped and self.skipped[0] <= step - self.settings.window:
            self.skipped.popleft()
        self.skipped.append(step)
        if len(self.skipped) > self.settings.skips:
            raise TooManySpikes(
                f"step {step}: {reason}; that is spike {len(self.skipped)} within "
                f"{self.settings.window} steps",
                step,
            )
        return reason

    def _reason(self, name: str, value: float, usual: list[float]) -> str | None:
        if not math.isfinite(value):
            return f"the {name} is {value}"
        if len(usual) < self.settings.warmup:
            return None
        middle = median(usual)
        deviation = NORMAL * median(abs(one - middle) for one in usual)
        limit = middle + self.settings.deviations * max(deviation, LEAST * abs(middle))
        return f"the {name} is {value:.4g}, usual is {middle:.4g}" if value > limit else None

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint: the judgement is the same after a resume."""
        facts = [(fact.loss, fact.norm) for fact in self.usual]
        return {
            "usual": torch.tensor(facts, dtype=torch.float64).reshape(-1, 2),
            "skipped": torch.tensor(list(self.skipped), dtype=torch.int64),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue with what `state` gave; without it, as at the start."""
        self.usual.clear()
        self.skipped.clear()
        if "usual" in state:
            self.usual.extend(Fact(*pair) for pair in state["usual"].tolist())
            self.skipped.extend(state["skipped"].tolist())


class RunBatches(Batches, Protocol):
    """Batches of a run."""

    @property
    def remarks(self) -> list[str]: ...


class WithoutSpikes:
    """Batches without the data of which a run went back. Their state is in its checkpoints.

    Step n reads what step n + `passed` would.
    """

    def __init__(self, batches: RunBatches, spikes: Spikes) -> None:
        self.batches, self.spikes = batches, spikes
        self.passed = self.rewinds = 0

    @property
    def fingerprint(self) -> str:
        return self.batches.fingerprint

    @property
    def remarks(self) -> list[str]:
        """On data, and on what was left out."""
        more = [f"{self.passed} steps of data were left out after spikes."] if self.passed else []
        return [*self.batches.remarks, *more]

    def step(self, number: int) -> list[Batch]:
        return self.batches.step(number + self.passed)

    def state(self, steps: int) -> dict[str, Tensor]:
        own = {**self.spikes.state(), "passed": torch.tensor([self.passed, self.rewinds])}
        inner = self.batches.state(steps + self.passed)
        return {**inner, **{f"{PREFIX}{name}": value for name, value in own.items()}}

    def restore(self, steps: int, state: Mapping[str, Tensor]) -> None:
        own = {n.removeprefix(PREFIX): v for n, v in state.items() if n.startswith(PREFIX)}
        self.passed, self.rewinds = own["passed"].tolist() if own else (0, 0)
        self.spikes.restore(own)
        inner = {name: value for name, value in state.items() if not name.startswith(PREFIX)}
        self.batches.restore(steps + self.passed, inner)
