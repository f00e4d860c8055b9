"""Weights in bf16 that still learn: updates are rounded at random (arXiv 2010.06192).

bf16 has 8 bits of precision, so the nearest number to a weight plus a small update is often the
weight itself. Rounded up or down with the right probability, the mean of many updates is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from culm.dtensor import local_shard
from culm.optim.rule import Group, Layout, Rule

LOST = 1 << 16  # values of the bits of an fp32 number that bf16 does not have


@dataclass(frozen=True)
class StochasticRounding(Rule):
    """Another rule, which sees the weights, gradients and states in fp32. Ranks with the same
    weights must draw the same random numbers.
    """

    inner: Rule

    @property
    def layout(self) -> Mapping[str, Layout]:
        return self.inner.layout

    def init(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return self.inner.init(_exact(parameter))

    def update(
        self, parameter: nn.Parameter, gradient: Tensor, state: dict[str, Tensor], group: Group
    ) -> None:
        exact = _exact(parameter)
        self.inner.update(exact, gradient.float(), state, group)
        local_shard(parameter.data).copy_(rounded(local_shard(exact.data)))

    def averaged(self, parameter: nn.Parameter, state: Mapping[str, Tensor]) -> Tensor:
        if not state:
            return parameter
        exact = _exact(parameter)
        found = self.inner.averaged(exact, state)
        return parameter if found is exact else found  # the weights themselves are not copied


def rounded(exact: Tensor) -> Tensor:
    """fp32 to bf16, up or down, so that the expected value is `exact`; random numbers of the global
    generator.
    """
    bits = exact.view(torch.int32)
    noise = torch.randint(LOST, bits.shape, dtype=torch.int32, device=bits.device)
    found = ((bits + noise) & -LOST).view(torch.float32)
    return torch.where(exact.isfinite(), found, exact).bfloat16()  # NaN stays NaN


def _exact(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(parameter.detach().float(), requires_grad=False)
