"""The model of concepts: a Transformer that writes one sentence from its vector.

    tokens of a sentence -- encoder -- mean -- linear -- LayerNorm --> concept (C,)
    concept -- linear --> in place of its first token -- decoder --> its tokens
    concepts of a text -- normaliser -- network --> the next concept

The blocks of the Transformer itself are the decoder. Without a network it is an autoencoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor

from culm.concept.network import Chances, ConceptNetwork, NetworkConfig
from culm.concept.networks import Network
from culm.concept.normalizer import Normalizer
from culm.model.context import Context
from culm.model.linear import Linear
from culm.model.score_rule import Backend
from culm.model.transformer import Transformer, TransformerConfig
from culm.model.trunk import Trunk, TrunkConfig


class ConceptsConfig(TransformerConfig):
    """A Transformer over the tokens of a sentence, with an encoder.

    encoder_layers: of the encoder, which has the parts of the decoder. concept: elements of a
        concept; the width unless given. noise: standard deviation that is added to a concept in
        training, whose elements have variance 1. network: predicts the next concept.
    context: tokens of a row of sentences in training, and the limit of one.
    """

    kind: Literal["concepts"] = "concepts"  # type: ignore[assignment]
    encoder_layers: PositiveInt = 2
    concept: PositiveInt | None = None
    noise: NonNegativeFloat = 0.1
    network: Network | None = None

    @model_validator(mode="after")
    def _writes(self) -> Self:
        for name in ("head", "mtp", "scaling", "masked"):
            if dict(self)[name] != type(self).model_fields[name].default:
                raise ValueError(f"{name}: a model of concepts has none of this; leave it out")
        return self

    @property
    def dim(self) -> int:
        """Elements of a concept."""
        return self.concept or self.width

    @property
    def encoder(self) -> TrunkConfig:
        """The trunk of the encoder."""
        parts = {name: value for name, value in self if name in TrunkConfig.model_fields}
        return TrunkConfig(**{**parts, "layers": self.encoder_layers})

    def new(self) -> ConceptModel:
        return ConceptModel(self)


class ConceptModel(Transformer):
    """tokens: (B, T) int64, sentences as documents -> logits (B, T, V), each sentence from its own
    concept.
    """

    config: ConceptsConfig
    reads_tokens_alone = False
    other_ends = ("compress", "expand", "network")
    forwards = (*Transformer.forwards, "concepts", "network_loss")

    def __init__(self, config: ConceptsConfig) -> None:
        super().__init__(config)
        self.encoder = Trunk(config.encoder)
        self.compress = Linear(config.width, config.dim)
        self.expand = Linear(config.dim, config.width)
        self.normalizer = Normalizer(config.dim)
        network: NetworkConfig | None = config.network
        self.network: ConceptNetwork | None = None if network is None else network.new(config.dim)

    def attach(self, config: NetworkConfig, seed: int) -> None:
        """Add a new network, where the model is."""
        self.config = self.config.model_copy(update={"network": config})
        self.network = config.initialized(self.config.dim, seed).to(self.device)
        if self.backends:
            self.network.trunk.set_backend(self.blocks[0].attention.backend)  # type: ignore[union-attr, arg-type]

    def set_backend(self, backend: Backend) -> int:
        others = super().set_backend(backend) + self.encoder.set_backend(backend)
        return others + (0 if self.network is None else self.network.trunk.set_backend(backend))

    def start(self, tokens: Tensor, context: Context) -> Tensor:
        """The input of the decoder (B, T, E): embeddings, and the concept in place of the first
        token of each sentence.

        With a cache, or vectors of the caller, only these stand in place of tokens.
        """
        x = super().start(tokens, context)
        if context.cache is not None or context.embeddings is not None:
            return x
        concepts, _ = self._concepts(tokens, context)
        if self.training and self.config.noise:
            concepts = concepts + self.config.noise * torch.randn_like(concepts)
        places = _sentences(tokens, context)[..., None].expand(-1, -1, self.config.dim)
        first = (context.positions == 0)[..., None]
        return torch.where(first, self.expand(concepts.gather(1, places).to(x.dtype)), x)

    def concepts(self, tokens: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """(B, T, C) fp32, sentence n of a row in place n; (B, T) bool: which places have one."""
        return self._concepts(tokens, context)

    def _concepts(self, tokens: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        x = super().start(tokens, context)
        states = self.encoder.normalized(self.encoder.run(x, context)[0]).float()
        rows, length = tokens.shape
        numbers = _sentences(tokens, context)
        places = (numbers + length * torch.arange(rows, device=tokens.device)[:, None]).flatten()
        real = torch.ones_like(places, dtype=torch.float32)
        if context.padding is not None:
            real = real * ~context.padding.flatten()
        sums = states.new_zeros(rows * length, states.shape[-1])
        sums = sums.index_add(0, places, states.flatten(0, 1) * real[:, None])
        sizes = real.new_zeros(rows * length).index_add(0, places, real).view(rows, length)
        means = sums.view(rows, length, -1) / sizes.clamp_min(1)[..., None]
        return F.layer_norm(self.compress(means), (self.config.dim,)), sizes > 0

    def network_loss(
        self, tokens: Tensor, context: Context, chances: Chances
    ) -> Mapping[str, Tensor]:
        """As `ConceptNetwork.loss`, of the concepts of rows (B, T), without gradient to these."""
        assert self.network is not None
        with torch.no_grad():
            concepts, present = self._concepts(tokens, context)
        limit = self.network.config.trunk.context
        given = self.normalizer(concepts[:, :limit])
        return self.network.loss(given, present[:, :limit], chances)

    def written(self, concepts: Tensor) -> Tensor:
        """(N, E): what the decoder reads in place of a first token, from concepts (N, C)."""
        return self.expand(concepts.to(self.dtype))


def _sentences(tokens: Tensor, context: Context) -> Tensor:
    """(B, T) int64, the number of each token's sentence in its row."""
    if context.documents is None:
        return torch.zeros_like(tokens)
    return context.documents.long()
