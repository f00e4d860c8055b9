"""Multi-token prediction in the form of DeepSeek-V3 (arXiv 2412.19437).

At token t, head k reads the state of the trunk (or of head k - 1) for the tokens up to t + k - 1,
and token t + k itself. It predicts token t + k + 1 with the embedding and output head of the model.

    states of k - 1 --- hnorm ---+
                                 +--- projection --- block --- norm --- head
    embedding of t + k --- enorm +
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from culm.config import Config
from culm.model.block import Block
from culm.model.context import LayerContext
from culm.model.layer_cache import LayerCache
from culm.model.linear import Linear
from culm.model.norm import NormConfig


class MTP(Config):
    """depth: heads, each with a block of the last layer's kind. weight: of their mean loss, which
    is added to that of the next token. Next-token training trains them and speculative decoding
    drafts with them (`culm.engine.mtp`); plain decoding and other formats omit them.
    """

    depth: Annotated[PositiveInt, Field(le=64)] = 1
    weight: PositiveFloat = 0.3


class MTPHead(nn.Module):
    """One head: states and embedded: (B, T, E) -> states (B, T, E), before its `norm`."""

    def __init__(self, block: Block, width: int, norm: NormConfig) -> None:
        super().__init__()
        self.hnorm, self.enorm = norm.build(width), norm.build(width)
        self.projection = Linear(2 * width, width)
        self.block = block
        self.norm = norm.build(width)

    def forward(
        self, states: Tensor, embedded: Tensor, context: LayerContext, cache: LayerCache | None
    ) -> Tensor:
        joined = torch.cat((self.enorm(embedded), self.hnorm(states)), -1)
        x, _, routing = self.block(self.projection(joined), context, cache)
        context.record_routing(routing)
        return x


def shifted(values: Tensor, by: int, fill: int, documents: Tensor | None = None) -> Tensor:
    """values[b, t + by], or `fill` after the end of the row or document; (B, T)."""

    def moved(x: Tensor, beyond: int) -> Tensor:
        return F.pad(x[:, by:], (0, min(by, x.shape[1])), value=beyond)

    if documents is None:
        return moved(values, fill)
    return torch.where(moved(documents, -1) == documents, moved(values, fill), fill)
