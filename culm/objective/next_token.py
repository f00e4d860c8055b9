"""Next-token prediction: pretraining and supervised fine-tuning, which differ in their data."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from culm.batch import Batch, Loss, Reads, Term
from culm.model.context import Context
from culm.model.transformer import Transformer
from culm.objective.objective import Load, Objective, ObjectiveConfig


class NextToken(ObjectiveConfig):
    """Negative log-likelihood of every learned target, in nats.

    Heads of multi-token prediction (`model.mtp`) are trained too; `mtp` is their mean loss.
    """

    reads: ClassVar[Reads] = "documents"
    trains_mtp: ClassVar[bool] = True
    kind: Literal["next_token"] = "next_token"

    def build(self, model: Transformer, load: Load, seed: int) -> NextTokenObjective:
        return NextTokenObjective(model.train())


class NextTokenObjective(Objective):
    """Sum of -log p(target), and of the tokens after it for heads of multi-token prediction."""

    def loss(self, batch: Batch, context: Context) -> Loss:
        mtp = self.model.config.mtp
        if mtp is None:
            nll = -self.model.logprobs(batch.tokens, batch.targets, context).sum()
            return Loss({"nll": Term(nll, "targets")})
        found = self.model.mtp_logprobs(batch.tokens, batch.targets, context)
        following, *further = [-logprobs.sum() for logprobs in found]
        heads = sum(further, start=torch.zeros_like(following)) / mtp.depth
        return Loss({"nll": Term(following, "targets"), "mtp": Term(heads, "targets", mtp.weight)})
