"""Reward models: a scalar head that learns which of two answers is better (arXiv 2203.02155)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor

from culm.batch import Batch, Loss, Reads, Term
from culm.model.context import Context
from culm.model.transformer import Transformer
from culm.objective.objective import Load, Objective, ObjectiveConfig


class Reward(ObjectiveConfig):
    """The Bradley-Terry loss of pairs: -log sigmoid(r_chosen - r_rejected - margin).

    The reward of an answer is the score at its last token, which ends its turn. The margin of a
    pair (arXiv 2307.09288) is 0 unless `data.format.margin` names the field that holds it.
    centering: weight of (r_chosen + r_rejected)^2, which keeps rewards near zero (arXiv
    2312.09244), 0.01 there.
    """

    reads: ClassVar[Reads] = "pairs"
    head: ClassVar[Literal["vocabulary", "scalar"]] = "scalar"
    kind: Literal["reward"] = "reward"
    centering: NonNegativeFloat = 0.0

    def build(self, model: Transformer, load: Load, seed: int) -> RewardObjective:
        return RewardObjective(self, model.eval())  # no dropout: it would move the margins


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """Loss of each pair from its two rewards and the margin between them; (N,) each."""
    return -F.logsigmoid(chosen - rejected - margin)


class RewardObjective(Objective):
    """Rows 2i and 2i + 1 of a batch are the chosen and the rejected answer of pair i."""

    def __init__(self, config: Reward, model: Transformer) -> None:
        super().__init__(model)
        self.config = config

    def loss(self, batch: Batch, context: Context) -> Loss:
        scores = self.model.scores(batch.tokens, context)  # (2N, T)
        rewards = scores.gather(1, batch.last[:, None])[:, 0]
        chosen, rejected = rewards[0::2], rewards[1::2]
        margin = batch.extra["margin"][0::2] if "margin" in batch.extra else 0.0
        losses = bradley_terry(chosen, rejected, margin)
        terms = {"bradley_terry": Term(losses.sum(), "pairs")}
        if self.config.centering:
            squares = (chosen + rejected).square().sum()
            terms["centering"] = Term(squares, "pairs", self.config.centering)
        metrics = {
            "accuracy": (chosen > rejected).float().sum(),
            "margin": (chosen - rejected).detach().sum(),
            "reward_chosen": chosen.detach().sum(),
            "reward_rejected": rejected.detach().sum(),
        }
        return Loss(terms, {name: Term(total, "pairs") for name, total in metrics.items()})
