"""Mixture of experts: a router sends each token to a few feed-forwards of many.

Scores are in fp32. The choice of experts may depend on a bias that their weights do not include
(arXiv 2408.15664, 2412.19437). Rows are sorted by expert for a grouped matmul; no token is dropped
(arXiv 2211.15841), unless a capacity is given.

A selection bias with a rate is updated once per step (`culm.objective.experts`). The auxiliary
losses are means over the tokens of a step, padding excluded, and are added to the objective's loss.
If a step is split into micro-batches or ranks, `balance_loss` uses the load of each part, as usual;
the other losses do not depend on the split.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from torch import Tensor, nn

from culm.model.activation import ACTIVATIONS, Activation, clamped_swiglu
from culm.model.context import LayerContext, Routing
from culm.model.init import CustomInit
from culm.model.linear import GroupedLinear
from culm.model.mlp.balance import sequence_loss, sequences_of, switch_loss, z_loss
from culm.model.mlp.gated import GatedFeedForward
from culm.model.mlp.part import FeedForwardConfig, FeedForwardModule
from culm.model.rule_updated import RuleUpdatedBuffers


class MoE(FeedForwardConfig):
    """experts: number of experts; top_k: experts per token.

    hidden: inner width of an expert. shared: number of experts that every token goes to.
    activation: of the gate; clamped is that of GPT-OSS. bias: of router and experts (GPT-OSS).
    scores: of the router; normalize: the weights of the chosen experts sum to one (Mixtral);
    scale: factor of these weights.
    groups, top_k_groups: experts are chosen from the top_k_groups groups with the highest sum of
        their best two scores (DeepSeek-V3).
    selection_bias: a bias for the choice of experts only. bias_rate: its update per step towards
        an even load (arXiv 2408.15664), 0.001 there.
    balance_loss: weight of the load-balancing loss of arXiv 2101.03961, whose optimum is 1.
    sequence_balance_loss: the same per document, 0.0001 in arXiv 2412.19437.
    z_loss: weight of the router z-loss (arXiv 2202.08906).
    capacity: maximum tokens of an expert in training, as a multiple of its even share, rounded up
        (arXiv 2006.16668). Later tokens skip a full expert: it is computed with weight 0, so that
        shapes do not depend on the load. In inference no token skips, since the answer of a row
        would depend on other rows.
    """

    kind: Literal["moe"] = "moe"
    experts: Annotated[PositiveInt, Field(le=10_000)]  # a broken file may ask for any number
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
            raise ValueError("groups: group selection needs at least two experts per group")
        if self.activation == "clamped" and self.shared:
            raise ValueError("shared: the clamped activation has no shared expert; set it to 0")
        if self.bias_rate and not self.selection_bias:
            raise ValueError("bias_rate: there is no bias to update; set selection_bias to true")
        return self

    def resolved(self, width: int) -> MoE:
        return self

    def build(self, width: int) -> MixtureOfExperts:
        return MixtureOfExperts(self, width)


class Router(nn.Module, CustomInit, RuleUpdatedBuffers):
    """x: (N, E) -> the weights of the chosen experts (N, k) fp32 and their numbers (N, k).

    N: the B * T tokens of the context, in order.
    """

    rule_updated = ("selection",)

    def __init__(self, config: MoE, width: int) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.experts, width))
        self.bias = nn.Parameter(torch.empty(config.experts)) if config.bias else None
        # In fp32 whatever the weights are: it moves in steps of a thousandth.
        selection = torch.empty(config.experts) if config.selection_bias else None
        self.selection: Tensor | None
        self.register_buffer("selection", selection)

    def init_weights(self, generator: Callable[[str], torch.Generator], std: float) -> None:
        weight = torch.empty(self.weight.shape)
        self.weight.copy_(weight.normal_(0.0, std, generator=generator("weight")))
        for tensor in (self.bias, self.selection):
            if tensor is not None:
                tensor.zero_()

    def forward(self, x: Tensor, context: LayerContext) -> tuple[Tensor, Tensor, Routing]:
        c = self.config
        bias = None if self.bias is None else self.bias.float()
        logits = F.linear(x.float(), self.weight.float(), bias)
        scores = logits.sigmoid() if c.scores == "sigmoid" else logits.softmax(-1)
        chosen = self._choose(scores.detach())
        weights = scores.gather(-1, chosen)
        if c.normalize:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        real = None if context.padding is None else ~context.padding.flatten()
        assigned = torch.zeros_like(scores).scatter(-1, chosen, 1.0)
        if real is not None:
            assigned = assigned * real[:, None]
        loss = self._loss(logits, scores, assigned, real, context)
        counts, dropped = assigned.sum(0), logits.new_zeros(())
        if c.capacity is not None and self.training:
            place = assigned.cumsum(0).gather(-1, chosen)  # from 1, in the order of tokens
            fits = place <= (c.capacity / c.experts * counts.sum()).ceil()
            weights = weights * fits
            dropped = counts.sum() - (assigned.gather(-1, chosen) * fits).sum()
        return weights * c.scale, chosen, Routing(loss, counts, dropped)

    def _choose(self, scores: Tensor) -> Tensor:
        c = self.config
        if self.selection is not None:
            scores = scores + self.selection
        if c.top_k_groups < c.groups:
            grouped = scores.unflatten(-1, (c.groups, -1))
            best = grouped.topk(2, -1).values.sum(-1).topk(c.top_k_groups, -1, sorted=False)
            kept = torch.zeros_like(grouped[..., 0]).scatter(-1, best.indices, 1.0).bool()
            scores = grouped.masked_fill(~kept[..., None], float("-inf")).flatten(-2)
        return scores.topk(c.top_k, -1).indices

    def _loss(
        self,
        logits: Tensor,
        scores: Tensor,
        assigned: Tensor,
        real: Tensor | None,
        context: LayerContext,
    ) -> Tensor:
        """Weighted, and as a sum over tokens: the loop divides by their number."""
        c, loss = self.config, logits.new_zeros(())
        if c.balance_loss or c.sequence_balance_loss:
            shares = scores / scores.sum(-1, keepdim=True)
            if real is not None:
                shares = shares * real[:, None]
            if c.balance_loss:
                loss = loss + c.balance_loss * switch_loss(shares, assigned)
            if c.sequence_balance_loss:
                loss = loss + c.sequence_balance_loss * sequence_loss(
                    shares, assigned, sequences_of(context)
                )
        if c.z_loss:
            loss = loss + c.z_loss * z_loss(logits, real)
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
        self.config = config
        self.router = Router(config, width)
        self.experts = Experts(config, width)
        self.shared: nn.Module | None = None
        if config.shared:
            assert config.activation != "clamped"
            self.shared = GatedFeedForward(width, config.shared * config.hidden, config.activation)

    def forward(self, x: Tensor, context: LayerContext) -> Tensor:
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
