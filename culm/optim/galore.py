"""GaLore: AdamW on gradients that are projected to few dimensions (arXiv 2403.03507).

    gradient (R, C)  ->  low (rank, C) or (R, rank)  ->  AdamW  ->  projected back, times scale

The projection holds the strongest singular vectors of the shorter side, computed again every
`refresh_steps` steps. The moments are kept, although they belong to the earlier vectors, as in the
paper's code; so a new vector takes the sign, which is free, of the earlier one. The moments take
rank / min(R, C) of the memory of AdamW's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from culm.config import SettingError
from culm.dtensor import full_tensor, like
from culm.optim.adamw import AdamSettings, AdamWRule
from culm.optim.adamw8bit import AdamW8bitRule
from culm.optim.groups import hidden_matrices
from culm.optim.rule import Group, Layout, Rule


class Projected(AdamSettings):
    """rank: dimensions of the projected gradients of hidden matrices; matrices without a longer
    side, and everything else, take AdamW. refresh_steps: between two projections. scale: of the
    projected update.
    """

    rank: PositiveInt = 128
    refresh_steps: PositiveInt = 200
    scale: PositiveFloat = 0.25

    def projected(self, module: nn.Module, inner: Rule) -> list[Group]:
        """Groups with projected gradients where the matrices are large enough.

        Raises:
            SettingError: none is.
        """
        rule = GaLoreRule(inner, self.rank, self.refresh_steps, self.scale)
        groups = self.with_rule(module, rule, lambda matrix: min(matrix.shape[-2:]) > self.rank)
        if not any(group["rule"] is rule for group in groups):
            learned = [p for p in hidden_matrices(module) if p.requires_grad]
            largest = max((min(p.shape[-2:]) for p in learned), default=0)
            raise SettingError(
                f"train.optimizer.rank: {self.rank} leaves nothing to project, since the hidden "
                f"matrices that learn have at most {largest} dimensions; use a smaller rank, such "
                "as a quarter of model.width, or adamw"
            )
        return groups


class GaLore(Projected):
    """GaLore with moments in fp32."""

    kind: Literal["galore"] = "galore"

    def groups(self, module: nn.Module) -> list[Group]:
        return self.projected(module, AdamWRule(self.betas))


class GaLore8bit(Projected):
    """GaLore with moments of 8 bits each."""

    kind: Literal["galore8bit"] = "galore8bit"

    def groups(self, module: nn.Module) -> list[Group]:
        return self.projected(module, AdamW8bitRule(self.betas))


@dataclass(frozen=True)
class GaLoreRule(Rule):
    """inner: the rule that is applied to projected gradients; it counts its steps as `step`.

    A shard has no singular vectors of its own: every rank computes the whole update.
    """

    inner: Rule
    rank: int
    refresh_steps: int
    scale: float

    @property
    def layout(self) -> Mapping[str, Layout]:
        return dict.fromkeys((*self.inner.layout, "projection"), "replicated")

    def init(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        *experts, rows, columns = parameter.shape
        short, long = sorted((rows, columns))
        low = (*experts, self.rank, long) if rows <= columns else (*experts, long, self.rank)
        dtype, device = parameter.dtype, parameter.device
        projection = torch.zeros(*experts, short, self.rank, dtype=dtype, device=device)
        projected = nn.Parameter(torch.zeros(low, dtype=dtype, device=device))
        return {**self.inner.init(projected), "projection": projection}

    def update(
        self, parameter: nn.Parameter, gradient: Tensor, state: dict[str, Tensor], group: Group
    ) -> None:
        gradient = full_tensor(gradient)
        basis, wide = state["projection"], gradient.shape[-2] <= gradient.shape[-1]
        # An expert that read nothing has no direction: it keeps its vectors, or waits for them.
        idle = (gradient == 0).all(-1, keepdim=True).all(-2, keepdim=True)
        lacking = (basis == 0).all(-1, keepdim=True).all(-2, keepdim=True) & ~idle
        due = gradient.is_meta or int(state["step"]) % self.refresh_steps == 0
        if due or bool(lacking.any()):
            new = strongest(gradient if wide else gradient.mT, self.rank)
            turned = (basis * new).sum(-2, keepdim=True) < 0
            renewed = lacking if not due else ~idle
            basis.copy_(torch.where(renewed, torch.where(turned, -new, new), basis))
        low = basis.mT @ gradient if wide else gradient @ basis
        change = nn.Parameter(torch.zeros_like(low), requires_grad=False)
        moments = {name: state[name] for name in self.inner.layout}
        self.inner.update(change, low, moments, {**group, "weight_decay": 0.0})
        whole = basis @ change if wide else change @ basis.mT
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(like(whole, parameter), alpha=self.scale)


def strongest(matrix: Tensor, count: int) -> Tensor:
    """(..., R, count): the left singular vectors of the greatest singular values; matrix: (..., R,
    C).
    """
    left, _, _ = torch.linalg.svd(matrix.float(), full_matrices=False)
    return left[..., :count].to(matrix.dtype)
