"""An optimizer is groups x rule: how parameters are grouped, and how each group is updated.

A new rule is one file: what it stores for a parameter, how that is laid out over the ranks of a
sharded model, and one update. Groups, learning rates, averaged weights, checkpoints and plans
follow from it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from culm.config import SettingError
from culm.dtensor import local_shard

Layout = Literal["parameter", "replicated", "local"]
Group = dict[str, Any]  # params, name, rule, lr, weight_decay, eps


class Rule(ABC):
    """How parameters change by their gradients."""

    @property
    @abstractmethod
    def layout(self) -> Mapping[str, Layout]:
        """How each state of a parameter lies in a sharded model. parameter: sharded along its first
        dimension, as the parameter is; replicated: the same on all ranks, such as a count of
        steps; local: each rank has one of its own, for its shard alone.
        """

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

    def averaged(self, parameter: nn.Parameter, state: Mapping[str, Tensor]) -> Tensor:
        """The weights that are evaluated and saved, where they are not those that learn."""
        return parameter


class ElementwiseRule(Rule):
    """A rule that treats each element of a parameter alone: in a sharded model, each rank updates
    its shard.
    """

    def update(
        self, parameter: nn.Parameter, gradient: Tensor, state: dict[str, Tensor], group: Group
    ) -> None:
        shards = {name: local_shard(value) for name, value in state.items()}
        self.change(local_shard(parameter), local_shard(gradient), shards, group)

    @abstractmethod
    def change(
        self, parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: Group
    ) -> None:
        """Change what a rank holds of the parameter and its states in place."""


class RuleOptimizer(torch.optim.Optimizer):
    """torch's optimizer interface around groups that each have a `rule`."""

    def __init__(self, groups: list[Group]) -> None:
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            self.update(group, group["params"])

    @torch.no_grad()
    def update(self, group: Group, parameters: Sequence[nn.Parameter]) -> None:
        """Update those parameters of a group that have a gradient; the others stay."""
        learned = [p for p in parameters if p.grad is not None]
        for parameter in learned:
            if parameter not in self.state:
                self.state[parameter] = group["rule"].init(parameter)
        states = [self.state[p] for p in learned]
        if learned:
            group["rule"].update_all(learned, [p.grad for p in learned], states, group)

    def in_backward(self, learn: Callable[[Group, nn.Parameter], None]) -> None:
        """Have `learn` called for each parameter as soon as its gradient is complete, in place of
        `step`. Who calls `update` there, and drops the gradient, never has all of them in memory
        (as in LOMO, arXiv 2306.09782).
        """
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.register_post_accumulate_grad_hook(partial(learn, group))

    def layouts(self) -> dict[nn.Parameter, Mapping[str, Layout]]:
        """How the states of each parameter are laid out."""
        return {p: group["rule"].layout for group in self.param_groups for p in group["params"]}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Parameters are what is evaluated and saved; afterwards they are again, bit for bit, what
        learns.
        """
        learning: dict[nn.Parameter, Tensor] = {}
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    shown = group["rule"].averaged(parameter, self.state.get(parameter, {}))
                    if shown is not parameter:
                        learning[parameter] = parameter.clone()
                        parameter.copy_(shown)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in learning.items():
                    parameter.copy_(value)


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
