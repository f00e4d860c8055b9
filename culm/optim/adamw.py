"""AdamW (arXiv 1711.05101), torch's own."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import nn

from culm.config import Config
from culm.optim.groups import groups_of, trainable


class AdamW(Config):
    """rate: the greatest learning rate of the schedule. betas, eps, weight_decay: as in torch.

    In a model with a scaling rule they are those of its base (`culm.model.scaling`).
    """

    kind: Literal["adamw"] = "adamw"
    rate: PositiveFloat = 3e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        groups = groups_of(module, trainable(module), self.rate, self.weight_decay, self.eps)
        return torch.optim.AdamW(groups, betas=self.betas, fused=True)
