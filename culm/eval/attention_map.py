"""What each token of a text looks at, read from a model without changing it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from culm.model.context import Context
from culm.model.transformer import Transformer


@torch.inference_mode()
def attention_map(model: Transformer, ids: Sequence[int], layer: int) -> Tensor:
    """ids: T tokens -> (H, T, T) fp32; row t is the distribution of token t over tokens 0..t."""
    tokens = torch.tensor([list(ids)], device=model.device)
    found: list[Tensor] = []
    attention = model.get_submodule(f"blocks.{layer}.attention")

    def catch(module, inputs) -> None:
        x, context, _ = inputs
        found.append(module.weights(x, context)[0].float().cpu())

    handle = attention.register_forward_pre_hook(catch)
    try:
        model.hidden(tokens, Context.plain(tokens))
    finally:
        handle.remove()
    return found[0]
