"""Dynamic loss scaling for fp16 (arXiv 1710.03740): small gradients would be 0 in its narrow range.

loss * scale --> backward --> gradients / scale, in fp32 --> finite? --> update, or a smaller scale

The rule is that of torch.amp.GradScaler, whose finite check and unscaling know one device and no
shards; here the gradient norm of all ranks, which each step has anyway, says whether all are
finite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from culm.train.judge import TrainingError

INITIAL, GROWTH, BACKOFF = 2.0**16, 2.0, 0.5
INTERVAL = 2000  # finite steps in a row, after which the scale grows
LEAST = 2.0**-14  # below, not even gradients of the size of the loss overflow


class LossScale:
    """value: what the loss is multiplied by. overflows: steps of the run whose gradients were not
    finite.
    """

    def __init__(self) -> None:
        self.value, self.overflows, self._row = INITIAL, 0, 0

    def judge(self, step: int, norm: float) -> str | None:
        """Why the update of a step is left out, None if it is not; and the scale of the next one.

        norm: of the gradients over all ranks, not scaled any more.

        Raises:
            TrainingError: gradients are not finite at any scale.
        """
        if math.isfinite(norm):
            self._row += 1
            if self._row == INTERVAL:
                self.value, self._row = self.value * GROWTH, 0
            return None
        before = self.value
        self.value, self._row, self.overflows = before * BACKOFF, 0, self.overflows + 1
        if self.value < LEAST:
            raise TrainingError(
                f"step {step}: gradients are not finite in fp16 with any loss scale; lower "
                "train.optimizer.rate, use train.precision=bf16 or fp32, or check the data"
            )
        return f"gradients overflowed in fp16 with a loss scale of {before:g}"

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint: a resumed run has the same scale."""
        numbers = [self.value, self._row, self.overflows]
        return {"numbers": torch.tensor(numbers, dtype=torch.float64)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue with what `state` gave; without it, as at the start."""
        start = torch.tensor([INITIAL, 0.0, 0.0])
        self.value, row, overflows = state.get("numbers", start).tolist()
        self._row, self.overflows = int(row), int(overflows)
