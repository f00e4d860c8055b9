"""How well a model predicts text: nats per token, bits per byte."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from culm.batch import IGNORED, Batch, Reads
from culm.model.context import Context
from culm.model.transformer import Transformer
from culm.objective.masked_diffusion import bound, within_rows
from culm.parallel.ranks import Ranks
from culm.tokenizer.tokenizer import Tokenizer

NO_TOKENS = (
    "the held-out split contains no scorable tokens, as where all answers are empty; give more "
    "text, or set data.held_out=0"
)


MASK_LEVELS = 16  # at which the bound of a model that fills in masked tokens is estimated


class HeldOutRows(Protocol):
    """Rows to score; `culm.data.loader.Loader` has them. gives: what is in them."""

    @property
    def gives(self) -> Reads: ...

    def sample(self, targets: int) -> Iterator[Batch]:
        """Batches with about `targets` targets, the same on every rank."""
        ...


@dataclass(frozen=True)
class Prediction:
    """Sums over the tokens of held-out text. nats: -log p; bytes: UTF-8 bytes of their text."""

    nats: float
    tokens: int
    bytes: int

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float:
        """Independent of the tokenizer: sums first, one division at the end."""
        return self.nats / math.log(2) / self.bytes


def byte_lengths(tokenizer: Tokenizer, size: int) -> Tensor:
    """(size,) bytes of each token; 0 for special tokens, which stand for no text."""
    known = list(tokenizer.sizes)
    known[tokenizer.end_of_text] = 0  # with bytes as tokens it looks like one
    return torch.tensor(known + [0] * (size - len(known)))


def require_scorable(rows: HeldOutRows, tokenizer: Tokenizer, size: int, targets: int) -> None:
    """Check that `predict` will find a token to score. size: of the model's vocabulary.

    Raises:
        ValueError: it will not.
    """
    known = byte_lengths(tokenizer, size) > 0
    if not any(_scored(batch, known).any() for batch in rows.sample(targets)):
        raise ValueError(NO_TOKENS)


def _scored(batch: Batch, known: Tensor) -> Tensor:
    """(B, T) whether a target is scored. known: of each token, whether it stands for bytes."""
    return known[batch.targets.clamp_min(0)] & (batch.targets != IGNORED)


class AddedSpaces:
    """The spaces that a tokenizer such as SentencePiece adds before a text: no bytes of the text.

    `everywhere`: one is added after each special token, and not only at the start of a document.
    """

    def __init__(self, tokenizer: Tokenizer, lengths: Tensor) -> None:
        plain = b"".join(map(tokenizer.bytes_of, tokenizer.encode("a")))
        self.any = plain == b" a"
        name = next(iter(tokenizer.specials), "")
        after = tokenizer.encode(f"a{name}a", specials=True)
        spelt = b"".join(map(tokenizer.bytes_of, after))
        self.everywhere = bool(name) and spelt == b" a a"
        spaced = [tokenizer.bytes_of(id)[:1] == b" " for id in range(tokenizer.vocabulary)]
        self._spaced = torch.tensor(spaced + [False] * (len(lengths) - len(spaced)))
        self._empty = lengths == 0
        self._before = max(len(tokenizer.start) - 1, 0)

    def count(self, batch: Batch) -> Tensor:
        """(B, T) 1 where the target begins with such a space."""
        device = batch.tokens.device
        first = self._empty.to(device)[batch.tokens]
        if not self.everywhere:
            first = first & (batch.positions == self._before)
        return first & self._spaced.to(device)[batch.targets.clamp_min(0)] & self.any


@torch.inference_mode()
def predict(
    model: Transformer,
    rows: HeldOutRows,
    tokenizer: Tokenizer,
    targets: int,
    ranks: Ranks = Ranks(),
) -> Prediction:
    """Score about `targets` targets, in disjoint rows (no context from the row before).

    Special tokens count neither nats nor bytes. Each rank scores a share of the batches. Of a model
    that fills in masked tokens, nats are an upper bound, estimated at MASK_LEVELS levels.

    Raises:
        ValueError: none of the rows holds a token that can be scored.
    """
    lengths = byte_lengths(tokenizer, model.config.vocabulary)
    spaces, lengths = AddedSpaces(tokenizer, lengths), lengths.to(model.device)
    nats, tokens, size = 0.0, 0.0, 0.0
    for number, batch in islice(enumerate(rows.sample(targets)), ranks.rank, None, ranks.count):
        batch = batch.to(model.device)
        if model.config.masked:
            batch = within_rows(batch)
        scored = _scored(batch, lengths > 0)
        counted = (lengths[batch.targets.clamp_min(0)] - spaces.count(batch).long()) * scored
        if model.config.masked:
            logprobs = bound(model, batch, MASK_LEVELS, number)
        else:
            context = Context(batch.positions, batch.documents)
            logprobs = model.logprobs(batch.tokens, batch.targets, context)
        nats -= float((logprobs * scored).cpu().double().sum())
        tokens += float(scored.sum())
        size += float(counted.sum())
    nats, tokens, size = ranks.sum([nats, tokens, size], model.device)
    if not size:
        raise ValueError(f"eval.measures.held_out: {NO_TOKENS}")
    return Prediction(nats, round(tokens), round(size))
