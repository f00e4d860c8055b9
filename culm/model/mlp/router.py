"""Which experts a token goes to, and with what weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from culm.model.context import Context, Routing
from culm.model.init import CustomInit
from culm.model.mlp.balance import sequence_loss, sequences_of, switch_loss, z_loss
from culm.model.rule_updated import RuleUpdatedBuffers

if TYPE_CHECKING:
    from culm.model.mlp.moe import MoE


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

    def forward(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor, Routing]:
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
        context: Context,
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
