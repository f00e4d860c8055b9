"""Activation checkpointing: what a block keeps for its backward, and what it computes again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from torch import nn
from torch._ops import OpOverload
from torch.utils.checkpoint import (
    checkpoint,
    create_selective_checkpoint_contexts,
    noop_context_fn,
)

from culm.model.trunk import Trunk

# What a block keeps for its backward: all, the results of matmuls and of attention by SDPA, or its
# input; a number: that share of all, which the compiler chooses.
Checkpointing = Literal["none", "selective", "full"] | float
aten = torch.ops.aten
KEPT: tuple[OpOverload, ...] = (
    aten.mm.default, aten.addmm.default, aten.bmm.default, aten._grouped_mm.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default, torch.ops.culm.flash_cpu.default,
)  # fmt: skip


def checkpoint_blocks(objective: nn.Module, kept: Sequence[OpOverload] = ()) -> None:
    """Keep the input of each block; compute the rest again in the backward.

    kept: operators whose results are kept too.
    """
    contexts = (
        partial(create_selective_checkpoint_contexts, list(kept)) if kept else noop_context_fn
    )
    for trunk in trunks_of(objective):
        for block in trunk.every_block:
            # The method and not a module around the block, whose parameters keep their names.
            again = partial(
                checkpoint, block.forward, use_reentrant=False, context_fn=contexts
            )  # fmt: skip
            block.forward = again  # type: ignore[method-assign]


def trunks_of(objective: nn.Module) -> list[Trunk]:
    """Everything with blocks: each Transformer, and trunks with other ends."""
    return [module for module in objective.modules() if isinstance(module, Trunk)]
