"""The one model: a trunk with an embedding and an output head, chosen by its settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from culm.batch import IGNORED
from culm.model.attention.deltanet import DeltaNet
from culm.model.block import Block
from culm.model.cache import Cache
from culm.model.context import Context, LayerContext
from culm.model.init import Zero
from culm.model.linear import Linear
from culm.model.logprobs import Kernels, capped, logprobs_of
from culm.model.mtp import MTP, MTPHead, shifted
from culm.model.quantized_cache import CacheKind
from culm.model.trunk import Trunk, TrunkConfig, multiplied, new_blocks


class TransformerConfig(TrunkConfig):
    """A decoder-only Transformer.

    vocabulary: rows of the token embedding. width: elements of a state. layers: count of blocks.
    context: tokens of a row in training.
    attention, mlp: one part for all layers, or a list that is repeated over them.
    norm: its kind, everywhere. residual: how the branches of a block are added.
    learned_positions: add a learned row per position to the token embedding (as GPT-2).
    embedding_scale: factor of the embedding (Gemma). head_scale: of what the head reads (muP).
    softcap: bound of the logits (Gemma 2).
    head: vocabulary gives logits, scalar numbers for each token (reward models, critics).
    scores: how many numbers a scalar head gives for a token; several are an ensemble.
    tied: the output head shares the weights of the embedding. init: initial weights
        (`culm.model.init`).
    scaling: how learning rates and initial weights follow from those of a smaller model
        (`culm.model.scaling`).
    mtp: heads that predict tokens beyond the next one (`culm.model.mtp`).
    masked: fill in masked tokens instead of predicting the next one; the objective
        masked_diffusion sets it. A token sees those after it too, and the last row of the
        vocabulary is the mask.
    """

    kind: Literal["transformer"] = "transformer"
    vocabulary: PositiveInt
    learned_positions: bool = False
    embedding_scale: PositiveFloat = 1.0
    softcap: PositiveFloat | None = None
    head: Literal["vocabulary", "scalar"] = "vocabulary"
    scores: PositiveInt = 1
    tied: bool = True
    mtp: MTP | None = None
    masked: bool = False

    @model_validator(mode="after")
    def _ends_fit(self) -> TransformerConfig:
        if self.tied and isinstance(self.init, Zero):
            raise ValueError(
                "init: zero zeroes the output head, which is tied to the embedding here; "
                "set tied to false"
            )
        if self.head == "scalar" and self.tied:
            raise ValueError("tied: a scalar head has no row per token; set tied to false")
        if self.head != "scalar" and self.scores > 1:
            raise ValueError("scores: several are given by a scalar head alone; head=scalar")
        if self.head == "scalar" and self.mtp is not None:
            raise ValueError("mtp: heads that predict tokens need head=vocabulary")
        if self.mtp is not None and self.mtp.depth >= self.context:
            raise ValueError(
                f"mtp.depth: {self.mtp.depth} heads look beyond a context of {self.context} tokens"
            )
        if self.masked and self.mtp is not None:
            raise ValueError("mtp: a model that fills in masked tokens has no next tokens")
        if self.masked and any(isinstance(part, DeltaNet) for part in self.attention):
            raise ValueError(
                "attention: deltanet reads tokens in order; a masked model needs both sides"
            )
        return self

    @property
    def mask_id(self) -> int:
        """The id of the mask, which is above those of all tokens, if the model is `masked`."""
        return self.vocabulary - 1

    def build(self, seed: int = 0, device: torch.device | str = "cpu") -> Transformer:
        """An initialised model; on the meta device it has shapes only."""
        with torch.device("meta"):
            model = self.new()
        if torch.device(device).type != "meta":
            model.to_empty(device=device)
            model.tie()
            self.fill(model, seed)
        return model

    def new(self) -> Transformer:
        """The model without weights."""
        return Transformer(self)


class Transformer(Trunk):
    """tokens: (B, T) int64 -> logits (B, T, V) fp32.

    divisible: whether ranks can hold parts of its weights (`culm.parallel`); copies always work.
    reads_tokens_alone: whether logits need nothing but tokens.
    """

    config: TransformerConfig
    # Methods besides `forward` that are called from outside, before which shards are gathered.
    forwards: ClassVar[tuple[str, ...]] = ("advance", "hidden", "mtp_hidden")
    divisible: ClassVar[bool] = True
    reads_tokens_alone: ClassVar[bool] = True

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.kernels = Kernels()
        self.embed = nn.Embedding(config.vocabulary, config.width)
        self.positions = (
            nn.Embedding(config.context, config.width) if config.learned_positions else None
        )
        last = [config.layers - 1] * (config.mtp.depth if config.mtp else 0)
        self.mtp = nn.ModuleList(
            MTPHead(block, config.width, config.norm) for block in new_blocks(config.scaled(), last)
        )
        outputs = config.scores if config.head == "scalar" else config.vocabulary
        self.head: nn.Module = Linear(config.width, outputs)
        self.tie()

    def tie(self) -> None:
        """Share the weights of the embedding with the output head, if the settings say so."""
        if self.config.tied:
            self.head.weight = self.embed.weight

    def drop_mtp(self) -> None:
        """Remove the heads of multi-token prediction, if there are any."""
        self.mtp = nn.ModuleList()
        self.config = self.config.model_copy(update={"mtp": None})

    @property
    def every_block(self) -> list[Block]:
        """The blocks of the trunk, then those of multi-token prediction."""
        heads = [head.block for head in self.mtp if isinstance(head, MTPHead)]
        return [*super().every_block, *heads]

    def layer_context(self, context: Context, inputs: Tensor) -> LayerContext:
        return super().layer_context(replace(context, causal=not self.config.masked), inputs)

    def states(self, tokens: Tensor, context: Context) -> tuple[Tensor, LayerContext]:
        """The output of the last block (B, T, E), and the context after it."""
        return self.run(self.start(tokens, context), context)

    def start(self, tokens: Tensor, context: Context) -> Tensor:
        """The input of the first block (B, T, E)."""
        x = self._embedded(tokens)
        if context.embeddings is not None:
            given, vectors = context.embeddings
            x = torch.where(given[..., None], vectors.to(x.dtype), x)
        if self.positions is not None:
            x = x + self.positions(context.positions).to(self.dtype)
        return x

    def _embedded(self, tokens: Tensor) -> Tensor:
        return multiplied(self.embed(tokens).to(self.dtype), self.config.embedding_scale)

    def advance(self, tokens: Tensor, context: Context) -> Tensor:
        """The states (B, T, E) that the next stage of a pipeline reads."""
        return self.states(tokens, context)[0]

    def hidden(self, tokens: Tensor, context: Context | None = None) -> Tensor:
        """The normalised last states (B, T, E), which the output head reads."""
        return self.normalized(self.states(tokens, context or Context.plain(tokens))[0])

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: (..., E), as `hidden` gives it -> (..., V) fp32."""
        return capped(self.head(hidden).float(), self.config.softcap)

    def forward(self, tokens: Tensor, context: Context | None = None) -> Tensor:
        return self.logits(self.hidden(tokens, context))

    def scores(self, tokens: Tensor, context: Context | None = None) -> Tensor:
        """One number per token by a scalar head, (B, T): the mean, if it gives several."""
        return self.head_scores(tokens, context).mean(-1)

    def head_scores(self, tokens: Tensor, context: Context | None = None) -> Tensor:
        """All numbers of a scalar head, (B, T, H), computed in fp32.

        Two answers may differ by less than bf16 can represent.

        Raises:
            ValueError: the model has no scalar head.
        """
        if self.config.head != "scalar":
            raise ValueError("the model has no scalar head to score with")
        return self.head(self.hidden(tokens, context).float())

    def logprobs(
        self,
        tokens: Tensor,
        targets: Tensor,
        context: Context | None = None,
        temperature: float = 1.0,
        vocabulary: int | None = None,
    ) -> Tensor:
        """Natural-log probability of each target, (B, T) fp32; 0 where the target is ignored.

        vocabulary: of the ids below it alone, which all targets must be.
        """
        hidden = self.hidden(tokens, context)
        return self.hidden_logprobs(hidden, targets, temperature, vocabulary)

    def hidden_logprobs(
        self,
        hidden: Tensor,
        targets: Tensor,
        temperature: float = 1.0,
        vocabulary: int | None = None,
    ) -> Tensor:
        """As `logprobs`, from states that `hidden` gave: (..., E) and (...) -> (...) fp32."""
        cap, size = self.config.softcap, self.config.vocabulary
        known = None if vocabulary is None or vocabulary >= size else vocabulary
        return logprobs_of(hidden, self.head, targets, temperature, self.kernels, cap, known)

    # -- multi-token prediction -----------------------------------------------------------------

    def mtp_hidden(
        self,
        tokens: Tensor,
        context: Context | None = None,
        ahead: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """`hidden`, followed by the states of each head of multi-token prediction.

        Those of head k at token t have read up to token t + k; if the row or its document ends
        before that, they have no meaning. ahead: what `ahead` gives, where the tokens are a part
        of longer rows.
        """
        x, inner = self.states(tokens, context or Context.plain(tokens))
        states = [self.normalized(x)]
        for k, later in enumerate(ahead or self.ahead(tokens), 1):
            x = self.mtp_step(k, x, later, inner)
            states.append(self.mtp_normalized(k, x))
        return states

    def ahead(self, tokens: Tensor, following: Tensor | None = None) -> list[Tensor]:
        """For each head k: the token k positions after each, (B, T); 0 where there is none.

        following: (B, N) tokens after these.
        """
        known = tokens if following is None else torch.cat((tokens, following), 1)
        depths = range(1, len(self.mtp) + 1)
        return [shifted(known, k, 0)[:, : tokens.shape[1]] for k in depths]

    def mtp_step(self, k: int, states: Tensor, tokens: Tensor, context: LayerContext) -> Tensor:
        """States (B, T, E) of head k from those of the head before it, or of the trunk.

        tokens: (B, T), each k positions after the token of its state. context: from `states`.
        """
        cache = context.cache.layers[len(self.blocks) + k - 1] if context.cache else None
        return self.mtp[k - 1](states, self._embedded(tokens), context, cache)

    def mtp_normalized(self, k: int, states: Tensor) -> Tensor:
        """The states of head k as the output head reads them."""
        return multiplied(self.mtp[k - 1].norm(states), self.head_scale)  # type: ignore[operator]

    def mtp_logprobs(
        self, tokens: Tensor, targets: Tensor, context: Context | None = None
    ) -> list[Tensor]:
        """`logprobs`, followed by those of each head of multi-token prediction."""
        documents = None if context is None else context.documents
        return self.logprobs_by_depth(self.mtp_hidden(tokens, context), targets, documents)

    def logprobs_by_depth(
        self, states: Sequence[Tensor], targets: Tensor, documents: Tensor | None
    ) -> list[Tensor]:
        """Log-probabilities from the states that `mtp_hidden` gave, (B, T) each.

        Those of head k at token t are of targets[b, t + k], in the same document.
        """
        return [
            self.hidden_logprobs(hidden, shifted(targets, k, IGNORED, documents) if k else targets)
            for k, hidden in enumerate(states)
        ]

    def mtp_cache(
        self, slots: int, length: int, kind: CacheKind = "plain", rollback: int = 0
    ) -> Cache:
        """As `cache`, followed by the layers of the heads of multi-token prediction."""
        return self._cache([*self.every_block], slots, length, kind, rollback)
