"""What a model costs, whatever it is used for: parameters, FLOPs, memory of the cache."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from culm.model.logprobs import ROUND, logits_stored
from culm.model.mlp.moe import MixtureOfExperts
from culm.model.transformer import Transformer, TransformerConfig
from culm.objective.next_token import NextToken, NextTokenObjective
from culm.plan.dry_run import counting_matmuls, meta_batch, training_flops


@dataclass(frozen=True)
class ModelCost:
    """Counted of the real modules, on the meta device.

    parameters: all, shared ones once. embedding: those of the token table. active: those that one
    token is multiplied with; a table that is only looked up is not among them, nor are experts that
    it is not sent to, nor heads of multi-token prediction.
    forward_flops, training_flops: a token, in full rows of `context` tokens that are one document.
    Training is three forwards, and more where `culm.model.logprobs` computes logits again.
    cache_bytes: what a token adds to the cache, in `dtype`.
    """

    parameters: int
    embedding: int
    active: int
    context: int
    forward_flops: float
    training_flops: float
    cache_bytes: int


def cost_of(
    config: TransformerConfig, context: int | None = None, dtype: torch.dtype = torch.bfloat16
) -> ModelCost:
    """The cost of a model of these settings, in rows of `context` tokens (its own if not given)."""
    context = context or config.context
    model = config.build(device="meta")
    model.set_backend("blocks")
    model.dtype = dtype
    parameters = sum(p.numel() for p in model.parameters())
    embedding = model.embed.weight.numel()
    further = sum(p.numel() for p in model.mtp.parameters())
    idle = idle_parameters(model)
    return ModelCost(
        parameters=parameters,
        embedding=embedding,
        active=parameters - idle - further - looked_up(model),
        context=context,
        forward_flops=forward_flops(model, context) / context,
        training_flops=_training_flops(model, context),
        cache_bytes=model.cache(1, 2).bytes - model.cache(1, 1).bytes,
    )


def _training_flops(model: Transformer, context: int) -> float:
    """Of a token. In so many rows that there is no padding, whose logits would be counted."""
    rows = ROUND // math.gcd(ROUND, context)
    with logits_stored():
        objective = NextTokenObjective(NextToken(), model)
        return training_flops(objective, meta_batch(rows, context, packed=False)) / (rows * context)


def looked_up(model: Transformer) -> int:
    """Parameters of tables from which a token takes a row, without a table that is the head too."""
    tables = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    if model.positions is not None:
        tables -= {model.positions.weight}
    return sum(table.numel() for table in tables if table is not model.head.weight)


def idle_parameters(model: nn.Module) -> int:
    """Those of the experts that a token is not sent to; the router chooses as many for each."""
    mixtures = [module for module in model.modules() if isinstance(module, MixtureOfExperts)]
    return sum(
        weight.numel() // moe.config.experts * (moe.config.experts - moe.config.top_k)
        for moe in mixtures
        for weight in moe.experts.parameters()
    )


def forward_flops(model: Transformer, context: int) -> int:
    """Of one row, for the logits of all its tokens; model on the meta device."""
    matmuls = counting_matmuls()
    with matmuls, torch.no_grad():
        model(torch.empty(1, context, dtype=torch.int64, device="meta"))
    return matmuls.get_total_flops()
