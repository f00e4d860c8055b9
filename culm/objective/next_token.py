"""Next-token prediction: pretraining and supervised fine-tuning, which differ in their data."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import nn

from culm.batch import Batch, Loss
from culm.config import Config
from culm.model.context import Context
from culm.model.transformer import Transformer
from culm.objective.experts import watching, with_experts


class NextToken(Config):
    """Negative log-likelihood of every learned target, in nats.

    A model with multi-token prediction (`model.mtp`) learns that too; `mtp` among the metrics is
    the mean of its heads, over the weight of the batch like all else.
    """

    on_policy: ClassVar[bool] = False
    pairs: ClassVar[bool] = False
    kind: Literal["next_token"] = "next_token"

    def build(self, model: Transformer) -> NextTokenObjective:
        return NextTokenObjective(model)


class NextTokenObjective(nn.Module):
    """Batch -> sum of -log p(target), with that of further tokens times its weight."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model.train()

    def forward(self, batch: Batch) -> Loss:
        context = watching(batch)
        return with_experts(self._loss(batch, context), context)

    def _loss(self, batch: Batch, context: Context) -> Loss:
        mtp = self.model.config.mtp
        if mtp is None:
            return Loss(-self.model.logprobs(batch.tokens, batch.targets, context).sum())
        found = self.model.mtp_logprobs(batch.tokens, batch.targets, context)
        following, *further = [-logprobs.sum() for logprobs in found]
        ahead = sum(further, start=torch.zeros_like(following)) / mtp.depth
        return Loss(following + mtp.weight * ahead, {"mtp": ahead})
