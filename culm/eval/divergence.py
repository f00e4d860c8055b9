"""How far a smaller form of a model has gone from the model itself, on text."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from culm.model.transformer import Transformer

LOGITS = 1 << 25  # held at once, of each model


@dataclass(frozen=True)
class Divergence:
    """Means over tokens.

    loss, changed: nats of the right token, by the original and by its other form.
    divergence: KL(original || other) in nats. agreement: share with the same likeliest token.
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
        """Of the other form."""
        return math.exp(self.changed)


@torch.inference_mode()
def compare(original: Transformer, other: Transformer, tokens: Tensor) -> Divergence:
    """Two models with one vocabulary, on rows (N, T) that are one document each."""
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
