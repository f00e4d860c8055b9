"""AdamW (arXiv 1711.05101), by torch's fused kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor, nn
from torch.optim.adamw import adamw

from culm.dtensor import local_shard
from culm.optim.groups import Named, groups_of, hidden_matrices, trainable
from culm.optim.optimizer import OptimizerConfig
from culm.optim.rule import Group, Layout, Rule

Beta = Annotated[float, Field(ge=0, lt=1)]


class AdamSettings(OptimizerConfig):
    """betas, eps, weight_decay: as in torch.optim.AdamW.

    In a model with a scaling rule, rate, weight decay and eps are those of its base
    (`culm.model.scaling`).
    """

    rate: PositiveFloat = 3e-4
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1

    def with_rule(
        self, module: nn.Module, rule: Rule, takes: Callable[[nn.Parameter], bool]
    ) -> list[Group]:
        """The hidden matrices that `takes` accepts with a rule of their own, the rest with AdamW's.

        Raises:
            SettingError: the model has a scaling rule that does not cover a parameter.
        """
        own = {parameter for parameter in hidden_matrices(module) if takes(parameter)}
        named = trainable(module)
        matrices = [one for one in named if one[1] in own]
        rest = [one for one in named if one[1] not in own]
        adamw = AdamWRule(self.betas)
        return [*self._groups(module, matrices, rule), *self._groups(module, rest, adamw)]

    def _groups(self, module: nn.Module, named: Sequence[Named], rule: Rule) -> list[Group]:
        return groups_of(module, named, rule, self.rate, self.weight_decay, self.eps)


class AdamW(AdamSettings):
    """AdamW with states in fp32."""

    kind: Literal["adamw"] = "adamw"

    def groups(self, module: nn.Module) -> list[Group]:
        return self._groups(module, trainable(module), AdamWRule(self.betas))


@dataclass(frozen=True)
class AdamWRule(Rule):
    """Moments as torch.optim.AdamW keeps them, in the precision of what it updates."""

    betas: tuple[float, float]

    @property
    def layout(self) -> Mapping[str, Layout]:
        return {"step": "replicated", "exp_avg": "parameter", "exp_avg_sq": "parameter"}

    def init(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }

    def update(
        self, parameter: nn.Parameter, gradient: Tensor, state: dict[str, Tensor], group: Group
    ) -> None:
        self.update_all([parameter], [gradient], [state], group)

    def update_all(
        self,
        parameters: Sequence[nn.Parameter],
        gradients: Sequence[Tensor],
        states: Sequence[dict[str, Tensor]],
        group: Group,
    ) -> None:
        if parameters[0].is_meta:  # the kernel knows no meta device, and a plan counts matmuls only
            return
        averages, squares = (
            [local_shard(state[name]) for state in states] for name in ("exp_avg", "exp_avg_sq")
        )
        adamw(
            [local_shard(p) for p in parameters], [local_shard(g) for g in gradients],
            averages, squares, [], [state["step"] for state in states], fused=True, amsgrad=False,
            beta1=self.betas[0], beta2=self.betas[1], lr=group["lr"],
            weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
        )  # fmt: skip
