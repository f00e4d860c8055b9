"""Parts of a user that extend those of Culm: checked by mypy with the package, and run here."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from culm.model.activation import Activation
from culm.model.attention.gqa import GQA, GroupedQuery, GroupedQueryAttention
from culm.model.context import LayerContext
from culm.model.layer_cache import LayerCache
from culm.model.mlp.gated import Gated, SwiGLU
from culm.model.norm import NormConfig
from culm.model.transformer import TransformerConfig


class Scaled(GroupedQuery):
    """factor: of the output."""

    kind: Literal["scaled"] = "scaled"
    factor: float = 2.0

    def build(self, width: int, norm: NormConfig, rotation: int) -> ScaledAttention:
        return ScaledAttention(self, width, norm, rotation)


class ScaledAttention(GroupedQueryAttention):
    """x: (B, T, E) -> (B, T, E)."""

    def __init__(self, config: Scaled, width: int, norm: NormConfig, rotation: int) -> None:
        super().__init__(config, width, norm, rotation)
        self.factor = config.factor

    def forward(self, x: Tensor, context: LayerContext, cache: LayerCache | None) -> Tensor:
        return self.factor * super().forward(x, context, cache)


class ReGLU(Gated):
    """A ReLU gates."""

    kind: Literal["reglu"] = "reglu"

    @property
    def activation(self) -> Activation:
        return "relu"


def logits(config: TransformerConfig, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return config.build(seed=0).eval()(tokens)


def test_a_part_may_extend_one_of_ours() -> None:
    tokens = torch.randint(40, (2, 12), generator=torch.Generator().manual_seed(0))
    plain = TransformerConfig(
        vocabulary=40, width=32, layers=2, context=16, attention=(GQA(heads=2),), mlp=(SwiGLU(),)
    )
    same = plain.model_copy(update={"attention": (Scaled(heads=2, factor=1.0),)})
    assert torch.equal(logits(same, tokens), logits(plain, tokens))
    for other in ({"attention": (Scaled(heads=2),)}, {"mlp": (ReGLU(),)}):
        assert not torch.equal(
            logits(plain.model_copy(update=other), tokens), logits(plain, tokens)
        )
