"""Next-token prediction: pretraining and supervised fine-tuning, which differ in their data."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import nn

from culm.batch import Batch, Loss
from culm.config import Config
from culm.model.transformer import Transformer
from culm.objective.experts import watching, with_experts


class NextToken(Config):
    """Negative log-likelihood of every learned target, in nats."""

    on_policy: ClassVar[bool] = False
    pairs: ClassVar[bool] = False
    kind: Literal["next_token"] = "next_token"

    def build(self, model: Transformer) -> NextTokenObjective:
        return NextTokenObjective(model)


class NextTokenObjective(nn.Module):
    """Batch -> sum of -log p(target)."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model.train()

    def forward(self, batch: Batch) -> Loss:
        context = watching(batch)
        nll = -self.model.logprobs(batch.tokens, batch.targets, context).sum()
        return with_experts(Loss(nll), context)
