"""An exponential moving average of the weights, whatever the rule that changes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from culm.optim.rule import Group, Layout, Rule


@dataclass(frozen=True)
class Averaging(Rule):
    """Another rule, with an average of the weights after each of its steps, in fp32."""

    inner: Rule
    decay: float

    @property
    def layout(self) -> Mapping[str, Layout]:
        return {**self.inner.layout, "ema": "parameter"}

    def init(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return {**self.inner.init(parameter), "ema": parameter.detach().float().clone()}

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
        self.inner.update_all(parameters, gradients, states, group)
        for parameter, state in zip(parameters, states, strict=True):
            state["ema"].lerp_(self.inner.averaged(parameter, state).float(), 1 - self.decay)

    def averaged(self, parameter: nn.Parameter, state: Mapping[str, Tensor]) -> Tensor:
        return state.get("ema", parameter)
