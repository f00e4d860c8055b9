"""How much a quantised or exported model differs from the original, on text."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from culm.model.transformer import Transformer

LOGITS = 1 << 25  # in memory at once, per model


@dataclass(frozen=True)
class Divergence:
    """Means over tokens.

    loss, changed: negative log-likelihood in nats, of the original and of the changed model.
    divergence: KL(original || changed) in nats. agreement: share of tokens with
    the same top choice.
    """

    tokens: int
    loss: float
    changed: float
    divergence: float
    agreement: float

    @property
    def perplexity(self) -> float:
        """Of the original."""
        return math.exp(self.loss)

    @property
    def changed_perplexity(self) -> float:
        """Of the changed model."""
        return math.exp(self.changed)


@torch.inference_mode()
def compare(original: Transformer, other: Transformer, tokens: Tensor) -> Divergence:
    """Compare two models of the same vocabulary on rows (N, T), each one document."""
    sums = torch.zeros(4, dtype=torch.float64)
    rows = max(1, LOGITS // (tokens.shape[1] * original.config.vocabulary))
    for batch in tokens.to(original.device).split(rows):
        inputs, targets = batch[:, :-1], batch[:, 1:, None]
        ours, theirs = (model(inputs).log_softmax(-1) for model in (original, other))
        found = (
            -ours.gather(-1, targets), -theirs.gather(-1, targets),
            torch.nn.functional.kl_div(theirs, ours, reduction="none", log_target=True).sum(-1),
            ours.argmax(-1) == theirs.argmax(-1),
        )  # fmt: skip
        sums += torch.stack([part.double().sum() for part in found]).cpu()
    count = tokens[:, 1:].numel()
    loss, changed, divergence, agreement = (sums / count).tolist()
    return Divergence(count, loss, changed, divergence, agreement)
