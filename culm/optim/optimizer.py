"""What every optimizer has: a rate, groups of parameters, rounding and averages of weights."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import Annotated

import torch
from pydantic import AfterValidator, Field, PositiveFloat
from torch import nn

from culm.config import Config
from culm.optim.averaging import Averaging
from culm.optim.groups import divided, rate_factors
from culm.optim.rounding import StochasticRounding
from culm.optim.rule import Group, Rule, RuleOptimizer


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression ({error})") from error
    return pattern


Pattern = Annotated[str, AfterValidator(_compiles)]


class OptimizerConfig(Config, ABC):
    """Settings of an optimizer.

    rate: peak learning rate; that of every parameter is a multiple of it.

    multiples: of the rate, by regular expressions; a parameter takes that of the first one which is
    found in its name. layer_decay: the rate of each block is this multiple of the next one's, from
    the last block down (arXiv 2106.08254).

    ema: decay of a moving average of the weights, which is evaluated and saved in their place.
    """

    kind: str
    rate: PositiveFloat
    multiples: dict[Pattern, PositiveFloat] = Field(default_factory=dict)
    layer_decay: float = Field(1.0, gt=0, le=1)
    ema: float | None = Field(None, gt=0, lt=1)

    @abstractmethod
    def groups(self, module: nn.Module) -> list[Group]:
        """The parameters of a module that require gradients, with the rule of each group.

        Raises:
            SettingError: the model has a scaling rule that does not cover a parameter.
        """

    def build(self, module: nn.Module) -> RuleOptimizer:
        """For the parameters of a module that require gradients.

        Raises:
            SettingError: the model has a scaling rule that does not cover a parameter, or a
                multiple is for no parameter.
        """
        factors = rate_factors(module, self.multiples, self.layer_decay)
        groups = [part for group in self.groups(module) for part in divided(group, factors)]
        return RuleOptimizer([group | {"rule": self._wrapped(group)} for group in groups])

    def _wrapped(self, group: Group) -> Rule:
        """The rule of a group, with what the precision of its weights and the settings ask for."""
        rule: Rule = group["rule"]
        if group["params"][0].dtype == torch.bfloat16:  # `divided` mixes no precisions
            rule = StochasticRounding(rule)
        return rule if self.ema is None else Averaging(rule, self.ema)
