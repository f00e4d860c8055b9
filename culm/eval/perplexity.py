"""How well a model predicts text: nats per token, bits per byte."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from culm.batch import IGNORED, Batch
from culm.model.context import Context
from culm.model.transformer import Transformer
from culm.parallel.ranks import Ranks
from culm.tokenizer.tokenizer import Tokenizer


class HeldOutRows(Protocol):
    """Rows to score; `culm.data.loader.Loader` has them."""

    def sample(self, targets: int) -> Iterator[Batch]:
        """Batches with about `targets` targets, the same on every rank."""
        ...


@dataclass(frozen=True)
class Prediction:
    """Sums over the tokens of held-out text. nats: -log p; bytes: UTF-8 bytes of the tokens."""

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
    known = [len(tokenizer.bytes_of(id)) for id in range(tokenizer.vocabulary)]
    known[tokenizer.end_of_text] = 0  # with bytes as tokens it looks like one
    return torch.tensor(known + [0] * (size - len(known)))


@torch.inference_mode()
def predict(
    model: Transformer,
    rows: HeldOutRows,
    tokenizer: Tokenizer,
    targets: int,
    ranks: Ranks = Ranks(),
) -> Prediction:
    """Score about `targets` targets, in disjoint rows (no context from the row before).

    Special tokens count neither nats nor bytes. Each rank scores a share of the batches.

    Raises:
        ValueError: none of the rows holds a token that can be scored.
    """
    lengths = byte_lengths(tokenizer, model.config.vocabulary).to(model.device)
    nats, tokens, size = 0.0, 0.0, 0.0
    for batch in islice(rows.sample(targets), ranks.rank, None, ranks.count):
        batch = batch.to(model.device)
        counted = lengths[batch.targets.clamp_min(0)] * (batch.targets != IGNORED)
        context = Context(batch.positions, batch.documents)
        logprobs = model.logprobs(batch.tokens, batch.targets, context)
        nats -= float((logprobs * (counted > 0)).cpu().double().sum())
        tokens += float((counted > 0).sum())
        size += float(counted.sum())
    nats, tokens, size = ranks.sum([nats, tokens, size], model.device)
    if not size:
        raise ValueError(
            "eval.measures.held_out: the held-out split contains no scorable tokens; are its "
            "answers empty?"
        )
    return Prediction(nats, round(tokens), round(size))
