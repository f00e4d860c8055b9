"""One block: attention and feed-forward on the residual stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor, nn

from culm.config import Config, refuse_unused
from culm.model.attention.part import AttentionConfig
from culm.model.context import LayerContext, Routing
from culm.model.init import CustomInit
from culm.model.layer_cache import LayerCache
from culm.model.lorentz import lorentz_sum
from culm.model.mlp.part import FeedForwardConfig
from culm.model.norm import NormConfig


class Residual(Config):
    """norm: before each branch (arXiv 2002.04745), behind it (as OLMo 2), or both (as Gemma 2).

    parallel: both branches read the same x (as Pythia); otherwise the second reads the sum of x and
        the first.
    scale: factor of every branch (CompleteP, arXiv 2505.01618).
    gains: two learned factors per layer, for x and for the input of the first block (as nanochat).
    dropout: of the output of a branch, in training.
    curvature: of hyperbolic space, in which a branch is added to x as a point, with a learned
        weight (`culm.model.lorentz`); null: they are vectors. stretch: factor of the space part of
        such a sum, which is shorter than that of vectors; 4 sqrt(width) if not given (as HELM).
    """

    norm: Literal["before", "behind", "both"] = "before"
    parallel: bool = False
    scale: PositiveFloat = 1.0
    gains: bool = False
    dropout: float = Field(0.0, ge=0, lt=1)
    curvature: PositiveFloat | None = None
    stretch: PositiveFloat | None = None

    @model_validator(mode="after")
    def _flat(self) -> Residual:
        refuse_unused(self, "stretch", self.curvature is not None, "curvature")
        if self.curvature is not None and (self.parallel or self.gains):
            raise ValueError("curvature: parallel and gains add vectors; leave them out")
        return self


class Block(nn.Module, CustomInit):
    """Residual block; the diagram has norms before the branches.

    x ---+--- norm - attention --(+)---+--- norm - mlp --(+)---> x
         +------------------------+    +------------------+
    """

    def __init__(
        self,
        attention: AttentionConfig,
        mlp: FeedForwardConfig,
        width: int,
        norm: NormConfig,
        residual: Residual,
        rotation: int,
    ) -> None:
        super().__init__()
        self.residual = residual
        before, behind = residual.norm != "behind", residual.norm != "before"
        self.attention_norm = norm.build(width) if before else nn.Identity()
        self.attention = attention.build(width, norm, rotation)
        self.attention_out_norm = norm.build(width) if behind else nn.Identity()
        self.mlp_norm = norm.build(width) if before else nn.Identity()
        self.mlp = mlp.build(width)
        self.mlp_out_norm = norm.build(width) if behind else nn.Identity()
        self.gains = nn.Parameter(torch.empty(2)) if residual.gains else None
        curved = residual.curvature is not None
        self.weights = nn.Parameter(torch.empty(2)) if curved else None  # of the two branches
        self.stretch = residual.stretch or 4 * width**0.5

    def init_weights(self, generator: Callable[[str], torch.Generator], std: float) -> None:
        if self.gains is not None:
            self.gains.copy_(torch.tensor([1.0, 0.0]))
        if self.weights is not None:
            self.weights.fill_(1.0)

    def forward(
        self, x: Tensor, context: LayerContext, cache: LayerCache | None
    ) -> tuple[Tensor, Tensor | None, Routing | None]:
        """Returns x, and `BlockOutputs.values` and `BlockOutputs.routing` of its parts."""
        context = context.for_block()
        if self.gains is not None:
            assert context.inputs is not None
            gains = self.gains.to(x.dtype)
            x = gains[0] * x + gains[1] * context.inputs
        mixed = self._branch(
            self.attention_out_norm(self.attention(self.attention_norm(x), context, cache))
        )
        read = x if self.residual.parallel else self._added(x, mixed, 0)
        made = self._branch(self.mlp_out_norm(self.mlp(self.mlp_norm(read), context)))
        x = x + mixed + made if self.residual.parallel else self._added(read, made, 1)
        return x, context.outputs.values, context.outputs.routing

    def _added(self, x: Tensor, branch: Tensor, number: int) -> Tensor:
        if self.weights is None or self.residual.curvature is None:
            return x + branch
        points = lorentz_sum(x, branch, self.weights[number], self.residual.curvature)
        return (points[..., 1:] * self.stretch).to(x.dtype)

    def _branch(self, x: Tensor) -> Tensor:
        if self.residual.scale != 1.0:
            x = x * self.residual.scale
        return F.dropout(x, self.residual.dropout, self.training) if self.residual.dropout else x
