"""An optimizer is groups x rule: how parameters are grouped, and how each group is updated.

A new rule is one file: what it stores for a parameter, how that is laid out over the ranks of a
sharded model, and one update. Groups, learning rates, checkpoints and plans follow from it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from culm.config import Config, SettingError

Layout = Literal["parameter", "replicated", "local"]
Group = dict[str, Any]  # params, name, rule, lr, weight_decay, eps


class Rule(ABC):
    """How parameters change by their gradients.

    layout: how each state of a parameter lies in a sharded model. parameter: has its shape and its
        shards; replicated: the same on all ranks, such as a count of steps; local: each rank has
        one of its own, for its shard alone.
    """

    layout: ClassVar[Mapping[str, Layout]]

    @abstractmethod
    def init(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """The states of a parameter before its first update, by the names in `layout`."""

    @abstractmethod
    def update(
        self, parameter: nn.Parameter, gradient: Tensor, state: dict[str, Tensor], group: Group
    ) -> None:
        """Change the parameter and its states in place, at `group["lr"]`."""

    def update_all(
        self,
        parameters: Sequence[nn.Parameter],
        gradients: Sequence[Tensor],
        states: Sequence[dict[str, Tensor]],
        group: Group,
    ) -> None:
        """A whole group; for a rule with one kernel for many tensors."""
        for parameter, gradient, state in zip(parameters, gradients, states, strict=True):
            self.update(parameter, gradient, state, group)


class RuleOptimizer(torch.optim.Optimizer):
    """torch's optimizer interface around groups that each have a `rule`."""

    def __init__(self, groups: list[Group]) -> None:
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            learned = [p for p in group["params"] if p.grad is not None]
            for parameter in learned:
                if parameter not in self.state:
                    self.state[parameter] = group["rule"].init(parameter)
            states = [self.state[p] for p in learned]
            if learned:
                group["rule"].update_all(learned, [p.grad for p in learned], states, group)

    def layouts(self) -> dict[nn.Parameter, Mapping[str, Layout]]:
        """How the states of each parameter are laid out."""
        return {p: group["rule"].layout for group in self.param_groups for p in group["params"]}


class OptimizerConfig(Config, ABC):
    """Settings of an optimizer.

    rate: peak learning rate; that of every parameter is a multiple of it.
    """

    kind: str
    rate: PositiveFloat

    @abstractmethod
    def build(self, module: nn.Module) -> RuleOptimizer:
        """For the parameters of a module that require gradients.

        Raises:
            SettingError: the model has a scaling rule that does not cover a parameter.
        """


def check_layouts(optimizer: RuleOptimizer, sharded: bool) -> None:
    """Refuse states that a checkpoint of whole tensors cannot hold.

    Raises:
        SettingError: a sharded parameter has a state of each rank's own.
    """
    local = {
        type(group["rule"]).__name__
        for group in optimizer.param_groups
        if "local" in group["rule"].layout.values()
    }
    if sharded and local:
        raise SettingError(
            f"train.optimizer: {min(local)} stores a state of each rank's own, which checkpoints "
            "of whole tensors cannot hold; use parallel=ddp"
        )
