"""A vector for a text: the mean of the model's last hidden states, of unit length.

A model that was only trained to predict tokens gives rough vectors: near texts are near, and more
cannot be expected.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from culm.engine.scoring import check, context_of
from culm.model.transformer import Transformer


@torch.no_grad()
def embed(model: Transformer, ids: Sequence[int], adapter: str | None = None) -> Tensor:
    """ids: T tokens -> (width,) fp32.

    Raises:
        ValueError: an id is outside the vocabulary, there is none, or the adapter is not known.
    """
    check(model, [ids], [adapter])
    tokens = torch.tensor([list(ids)], device=model.device)
    states = model.hidden(tokens, context_of(model, tokens, [adapter]))
    return F.normalize(states[0].float().mean(0), dim=0)
