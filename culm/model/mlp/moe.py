"""Mixture of experts: a router sends each token to a few feed-forwards of many.

Scores are in fp32. Which experts are chosen may depend on a bias that is no part of their weights
(arXiv 2408.15664, 2412.19437). No token is dropped: rows are sorted by expert and multiplied in
groups.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from torch import Tensor, nn

from culm.model.activation import ACTIVATIONS, Activation, clamped_swiglu
from culm.model.context import Context, Routing
from culm.model.init import Fresh
from culm.model.linear import GroupedLinear
from culm.model.mlp.gated import GatedFeedForward
from culm.model.mlp.part import FeedForwardConfig, FeedForwardModule


class MoE(FeedForwardConfig):
    """experts: all of them; chosen: those that a token is sent to.

    hidden: inner width of an expert. shared: experts of this size that every token goes to.
    activation: of the gate; clamped is GPT-OSS's. bias: of router and experts (GPT-OSS).
    scores: of the router; normalize: the weights of the chosen experts sum to one (Mixtral);
    scale: what they are multiplied by.
    groups, groups_chosen: experts are chosen from the groups whose best two scores are highest
        (DeepSeek-V3).
    selection_bias: a bias that takes part in choosing alone.
    switch: weight of the load-balancing loss of arXiv 2101.03961, 1 at best before the weight.
    z: weight of the mean squared log-sum of the router's scores (arXiv 2202.08906).
    """

    kind: Literal["moe"] = "moe"
    experts: PositiveInt
    chosen: PositiveInt = 2
    hidden: PositiveInt
    shared: NonNegativeInt = 0
    activation: Activation | Literal["clamped"] = "silu"
    bias: bool = False
    scores: Literal["softmax", "sigmoid"] = "softmax"
    normalize: bool = True
    scale: PositiveFloat = 1.0
    groups: PositiveInt = 1
    groups_chosen: PositiveInt = 1
    selection_bias: bool = False
    switch: NonNegativeFloat = 0.0
    z: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _fits(self) -> MoE:
        if self.experts % self.groups:
            raise ValueError(f"groups: {self.groups} does not divide experts={self.experts}")
        if self.groups_chosen > self.groups:
            raise ValueError(f"groups_chosen: {self.groups_chosen} is more than {self.groups}")
        among = self.experts // self.groups * self.groups_chosen
        if self.chosen > among:
            raise ValueError(f"chosen: {self.chosen} is more than the {among} to choose from")
        if self.groups_chosen < self.groups and self.experts // self.groups < 2:
            raise ValueError("groups: a group is judged by its two best experts, and has only one")
        return self

    def resolved(self, width: int) -> MoE:
        return self

    def build(self, width: int) -> MixtureOfExperts:
        return MixtureOfExperts(self, width)


class Router(nn.Module, Fresh):
    """x: (N, E) -> the weights of the chosen experts (N, k) fp32 and their numbers (N, k)."""

    def __init__(self, config: MoE, width: int) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.experts, width))
        self.bias = nn.Parameter(torch.empty(config.experts)) if config.bias else None
        # In fp32 whatever the weights are: it moves in steps of a thousandth.
        selection = torch.empty(config.experts) if config.selection_bias else None
        self.selection: Tensor | None
        self.register_buffer("selection", selection)

    def reset(self, drawn: Callable[[str], torch.Generator]) -> None:
        weight = torch.empty(self.weight.shape)
        self.weight.copy_(weight.normal_(0.0, 0.02, generator=drawn("weight")))
        for tensor in (self.bias, self.selection):
            if tensor is not None:
                tensor.zero_()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Routing]:
        c = self.config
        bias = None if self.bias is None else self.bias.float()
        logits = F.linear(x.float(), self.weight.float(), bias)
        scores = logits.sigmoid() if c.scores == "sigmoid" else logits.softmax(-1)
        chosen = self._choose(scores.detach())
        weights = scores.gather(-1, chosen)
        if c.normalize:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        counts = torch.bincount(chosen.flatten(), minlength=c.experts).float()
        loss = self._loss(logits, scores, counts)
        return weights * c.scale, chosen, Routing(loss, counts, logits.new_zeros(()))

    def _choose(self, scores: Tensor) -> Tensor:
        c = self.config
        if self.selection is not None:
            scores = scores + self.selection
        if c.groups_chosen < c.groups:
            grouped = scores.unflatten(-1, (c.groups, -1))
            best = grouped.topk(2, -1).values.sum(-1).topk(c.groups_chosen, -1, sorted=False)
            kept = torch.zeros_like(grouped[..., 0]).scatter(-1, best.indices, 1.0).bool()
            scores = grouped.masked_fill(~kept[..., None], float("-inf")).flatten(-2)
        return scores.topk(c.chosen, -1).indices

    def _loss(self, logits: Tensor, scores: Tensor, counts: Tensor) -> Tensor:
        """Weighted, and as a sum over tokens: the objective divides by their number."""
        c, loss = self.config, logits.new_zeros(())
        if c.switch:
            shares = scores / scores.sum(-1, keepdim=True)
            load = counts / counts.sum()
            loss = loss + c.switch * c.experts * (shares @ load).sum()
        if c.z:
            loss = loss + c.z * logits.logsumexp(-1).square().sum()
        return loss


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
        self.chosen = config.chosen
        self.router = Router(config, width)
        self.experts = Experts(config, width)
        self.shared: nn.Module | None = None
        if config.shared:
            assert config.activation != "clamped"
            self.shared = GatedFeedForward(width, config.shared * config.hidden, config.activation)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        flat = x.flatten(0, -2)
        weights, chosen, context.aside.routing = self.router(flat)
        order = chosen.flatten().argsort(stable=True)
        rows = order // self.chosen
        ends = context.aside.routing.counts.cumsum(0).to(torch.int32)
        made = self.experts(flat[rows], ends) * weights.flatten()[order, None].to(x.dtype)
        out = torch.zeros_like(flat, dtype=torch.float32).index_add(0, rows, made.float())
        out = out.to(x.dtype).view_as(x)
        return out if self.shared is None else out + self.shared(x, context)
