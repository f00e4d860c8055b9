"""The settings of the one model."""

from __future__ import annotations

from itertools import cycle, islice
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, model_validator

from culm.config import Config, listed
from culm.model.attention import Attention
from culm.model.attention.gqa import GQA
from culm.model.attention.part import AttentionConfig
from culm.model.block import Residual
from culm.model.init import GPT2, Initialization, Zero, initialize
from culm.model.mlp import FeedForward
from culm.model.mlp.gated import SwiGLU
from culm.model.mlp.part import FeedForwardConfig
from culm.model.mtp import MTP
from culm.model.norm import Normalization, RMSNormConfig
from culm.model.scaling import CompleteP, Scaling
from culm.model.transformer import Transformer


class TransformerConfig(Config):
    """A decoder-only Transformer.

    vocabulary: rows of the embedding. context: tokens it is trained on at once.
    attention, mlp: one part for all layers, or a list that is repeated over them.
    norm: its kind, everywhere. residual: how the parts of a block meet.
    learned_positions: a learned row per position is added to the embedding (as GPT-2).
    embedding_scale: what the embedding is multiplied by (Gemma). head_scale: the same for what the
    head reads (muP). softcap: bound of the logits (Gemma 2).
    tied: the output projection is the embedding. init: how weights begin (`culm.model.init`).
    scaling: the rule by which rates and initial weights follow from those of a smaller model
        (`culm.model.scaling`).
    mtp: heads that predict tokens beyond the next one (`culm.model.mtp`).
    """

    vocabulary: PositiveInt
    width: PositiveInt
    layers: Annotated[PositiveInt, Field(le=10_000)]  # a broken file may ask for any number
    context: PositiveInt = 512
    attention: Annotated[tuple[Attention, ...], BeforeValidator(listed), Field(min_length=1)]
    mlp: Annotated[tuple[FeedForward, ...], BeforeValidator(listed), Field(min_length=1)] = (
        SwiGLU(),
    )
    norm: Normalization = RMSNormConfig()
    residual: Residual = Residual()
    learned_positions: bool = False
    embedding_scale: PositiveFloat = 1.0
    head_scale: PositiveFloat = 1.0
    softcap: PositiveFloat | None = None
    head: Literal["vocabulary", "scalar"] = "vocabulary"
    tied: bool = True
    init: Initialization = GPT2()
    scaling: Scaling | None = None
    mtp: MTP | None = None

    @model_validator(mode="after")
    def _fits(self) -> TransformerConfig:
        if self.tied and isinstance(self.init, Zero):
            raise ValueError(
                "init: zero begins the head at zero, and here it is the embedding; "
                "set tied to false"
            )
        if isinstance(self.scaling, CompleteP) and isinstance(self.init, GPT2):
            raise ValueError(
                "init: gpt2 shrinks weights with the depth, as completep does with "
                "branches; take init=llama or zero"
            )
        if self.mtp is not None and self.mtp.depth >= self.context:
            raise ValueError(
                f"mtp.depth: {self.mtp.depth} heads look beyond a context of {self.context} tokens"
            )
        mixed = {a.kv_heads or a.heads for a in self.attention if isinstance(a, GQA)}
        if len(mixed) > 1 and any(a.value_residual for a in self.attention if isinstance(a, GQA)):
            raise ValueError(
                "attention[0].value_residual: values of unequal kv_heads cannot be mixed"
            )
        for part, configs in {"attention": self.attention, "mlp": self.mlp}.items():
            for index, config in enumerate(configs):
                try:
                    config.resolved(self.width)
                except ValueError as error:
                    raise ValueError(f"{part}[{index}].{error}") from None
        return self

    @property
    def attentions(self) -> list[AttentionConfig]:
        """One per layer."""
        return list(islice(cycle(self.attention), self.layers))

    @property
    def mlps(self) -> list[FeedForwardConfig]:
        """One per layer."""
        return list(islice(cycle(self.mlp), self.layers))

    def resolved(self) -> TransformerConfig:
        """The same model with every default filled in and each list as short as it can be."""
        same = self.scaled()
        attention = tuple(part.resolved(self.width) for part in same.attention)
        mlp = tuple(part.resolved(self.width) for part in same.mlp)
        return same.model_copy(update={"attention": attention, "mlp": mlp}).shortened()

    def scaled(self) -> TransformerConfig:
        """The model that is computed: what its scaling rule multiplies in its own settings."""
        rule = self.scaling
        if rule is None:
            return self
        attention = [part.rescaled(self.width, rule.base_head_dim) for part in self.attention]
        branches = self.residual.scale / rule.depths(self.layers)
        update = {
            "attention": tuple(attention),
            "residual": self.residual.model_copy(update={"scale": branches}),
            "head_scale": self.head_scale / rule.widths(self.width),
            "scaling": None,
        }
        return self.model_copy(update=update)

    def shortened(self) -> TransformerConfig:
        """The same model with each list as short as it can be."""
        parts = {"attention": _period(self.attentions), "mlp": _period(self.mlps)}
        return self.model_copy(update=parts)

    def build(self, seed: int = 0, device: torch.device | str = "cpu") -> Transformer:
        """An initialised model; on the meta device only its shapes exist."""
        with torch.device("meta"):
            model = Transformer(self)
        if torch.device(device).type != "meta":
            model.to_empty(device=device)
            model.tie()
            initialize(model, seed, self.layers, self.init)
            if self.scaling is not None:
                self.scaling.shrink(model, self.width)
        return model


def _period(parts: list[Any]) -> tuple[Any, ...]:
    """The shortest beginning of a list that gives it when it is repeated."""
    for length in range(1, len(parts) + 1):
        if all(part == parts[index % length] for index, part in enumerate(parts)):
            return tuple(parts[:length])
    raise AssertionError("a list repeats itself")
