"""Decides by loss and gradient norm whether the update of a step is made."""

from __future__ import annotations

import math
from typing import Protocol

from culm.exits import DIVERGED, RunError


class TrainingError(RunError):
    """Training cannot continue; the message says at which step, why, and what to try."""

    exit_code = DIVERGED


class StepJudge(Protocol):
    def judge(self, step: int, loss: float, norm: float) -> str | None:
        """Why the update of a step is left out; None if it is not. The same on all ranks."""
        ...


class Finite:
    """Every step is to be finite."""

    def judge(self, step: int, loss: float, norm: float) -> None:
        """Nothing is left out.

        Raises:
            TrainingError: the loss or the gradient norm is not finite.
        """
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise TrainingError(
                f"step {step}: the loss is {loss}, the gradient norm {norm}; lower "
                "train.optimizer.rate or check the data of this step (checkpoints are unchanged)"
            )
