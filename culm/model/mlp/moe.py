"""Mixture of experts: a router sends each token to a few feed-forwards of many.

Scores are in fp32. Which experts are chosen may depend on a bias that is no part of their weights
(arXiv 2408.15664, 2412.19437). Rows are sorted by expert and multiplied in groups; no token is
dropped (arXiv 2211.15841), unless a capacity is given.

A selection bias with a rate moves once a step (`culm.objective.experts`). The auxiliary losses are
means over the tokens of a step, padding excluded, and are added to the objective's loss. Where a
step is split into micro-batches or ranks, `balance_loss` uses the load of each part, as is usual;
the other losses do not depend on the split.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from torch import Tensor, nn

from culm.model.activation import ACTIVATIONS, Activation, clamped_swiglu
from culm.model.context import Context
from culm.model.linear import GroupedLinear
from culm.model.mlp.gated import GatedFeedForward
from culm.model.mlp.part import FeedForwardConfig, FeedForwardModule
from culm.model.mlp.router import Router


class MoE(FeedForwardConfig):
    """experts: all of them; top_k: those that a token is sent to.

    hidden: inner width of an expert. shared: experts of this size that every token goes to.
    activation: of the gate; clamped is GPT-OSS's. bias: of router and experts (GPT-OSS).
    scores: of the router; normalize: the weights of the chosen experts sum to one (Mixtral);
    scale: what they are multiplied by.
    groups, top_k_groups: experts are chosen from the groups whose best two scores are highest
        (DeepSeek-V3).
    selection_bias: a bias that takes part in choosing alone. bias_rate: how far it moves at each
        step towards an even load (arXiv 2408.15664), 0.001 there.
    balance_loss: weight of the load-balancing loss of arXiv 2101.03961, whose optimum is 1.
    sequence_balance_loss: the same per document, 0.0001 in arXiv 2412.19437.
    z_loss: weight of the router z-loss (arXiv 2202.08906).
    capacity: in training an expert takes at most this many times its even share of the tokens,
        rounded up (arXiv 2006.16668); those of later positions skip it: it is computed all the
        same, so that shapes do not depend on the load, and weighs nothing. Where text is only read
        no token skips, since one row's answer would depend on the others.
    """

    kind: Literal["moe"] = "moe"
    experts: PositiveInt
    top_k: PositiveInt = 2
    hidden: PositiveInt
    shared: NonNegativeInt = 0
    activation: Activation | Literal["clamped"] = "silu"
    bias: bool = False
    scores: Literal["softmax", "sigmoid"] = "softmax"
    normalize: bool = True
    scale: PositiveFloat = 1.0
    groups: PositiveInt = 1
    top_k_groups: PositiveInt = 1
    selection_bias: bool = False
    bias_rate: NonNegativeFloat = 0.0
    balance_loss: NonNegativeFloat = 0.0
    sequence_balance_loss: NonNegativeFloat = 0.0
    z_loss: NonNegativeFloat = 0.0
    capacity: PositiveFloat | None = None

    @model_validator(mode="after")
    def _fits(self) -> MoE:
        if self.experts % self.groups:
            raise ValueError(f"groups: {self.groups} does not divide experts={self.experts}")
        if self.top_k_groups > self.groups:
            raise ValueError(f"top_k_groups: {self.top_k_groups} is more than {self.groups}")
        among = self.experts // self.groups * self.top_k_groups
        if self.top_k > among:
            raise ValueError(f"top_k: {self.top_k} is more than the {among} to choose from")
        if self.top_k_groups < self.groups and self.experts // self.groups < 2:
            raise ValueError("groups: a group is judged by its two best experts, and has only one")
        if self.activation == "clamped" and self.shared:
            raise ValueError("shared: the clamped activation has no shared expert; set it to 0")
        if self.bias_rate and not self.selection_bias:
            raise ValueError("bias_rate: there is no bias to move; set selection_bias to true")
        return self

    def resolved(self, width: int) -> MoE:
        return self

    def build(self, width: int) -> MixtureOfExperts:
        return MixtureOfExperts(self, width)


class Experts(nn.Module):
    """x: (M, E), sorted by expert -> (M, E); ends: (experts,) int32, where their rows end."""

    def __init__(self, config: MoE, width: int) -> None:
        super().__init__()
        hidden, experts, bias = config.hidden, config.experts, config.bias
        self.activation = config.activation
        self.gate = GroupedLinear(experts, width, hidden, bias)
        self.up = GroupedLinear(experts, width, hidden, bias)
        self.down = GroupedLinear(experts, hidden, width, bias, residual=True)

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        gate, up = self.gate(x, ends), self.up(x, ends)
        if self.activation == "clamped":
            return self.down(clamped_swiglu(gate, up), ends)
        return self.down(ACTIVATIONS[self.activation](gate) * up, ends)


class MixtureOfExperts(FeedForwardModule):
    """Sum of the chosen experts, each times its weight, and of the shared one."""

    def __init__(self, config: MoE, width: int) -> None:
        super().__init__()
        self.config = config
        self.router = Router(config, width)
        self.experts = Experts(config, width)
        self.shared: nn.Module | None = None
        if config.shared:
            assert config.activation != "clamped"
            self.shared = GatedFeedForward(width, config.shared * config.hidden, config.activation)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        flat = x.flatten(0, -2)
        weights, chosen, context.outputs.routing = self.router(flat, context)
        sorted_, order = chosen.flatten().sort(stable=True)
        numbers = torch.arange(self.config.experts, device=x.device)
        ends = torch.searchsorted(sorted_, numbers, right=True, out_int32=True)
        rows = order // self.config.top_k
        made = self.experts(flat[rows], ends)[order.argsort()].unflatten(0, weights.shape)
        # A sum in a fixed order, which adding rows in place is not on a GPU.
        out = (made.float() * weights[..., None]).sum(1).to(x.dtype).view_as(x)
        return out if self.shared is None else out + self.shared(x, context)
