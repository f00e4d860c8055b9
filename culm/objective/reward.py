"""Reward models: a scalar head that learns which answers are better (arXiv 2203.02155)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor

from culm.batch import Batch, Loss, Reads, Term
from culm.config import refuse_unused
from culm.model.context import Context
from culm.model.transformer import Transformer
from culm.objective.objective import Load, Objective, ObjectiveConfig
from culm.objective.reward_losses import (
    bradley_terry,
    margin_ranking,
    ordered_share,
    plackett_luce,
)

RewardLoss = Literal["bradley_terry", "margin_ranking", "plackett_luce", "regression", "process"]

READS: Mapping[str, Reads] = {
    "margin_ranking": "pairs",
    "bradley_terry": "pairs",
    "plackett_luce": "rankings",
    "regression": "labels",
    "process": "steps",
}
COLUMNS: Mapping[Reads, Mapping[str, Literal["row", "token"]]] = {
    "rankings": {"score": "row", "place": "row"},
    "labels": {"label": "row"},
    "steps": {"label": "token"},
}


class Reward(ObjectiveConfig):
    """loss: what is learned, and from which data.

    bradley_terry: pairs; -log sigmoid(r_chosen - r_rejected - margin). margin_ranking: pairs;
    max(0, margin - (r_chosen - r_rejected)). plackett_luce: rankings of several answers
    (arXiv 2305.18290, appendix A.3). regression: answers with a number; the squared error of the
    reward. process: answers in steps (arXiv 2305.20050); the cross-entropy of each label, where the
    sigmoid of the score of a step is the probability that the answer is right so far.

    The reward of an answer is the score at its last token, which ends its turn. margin: by which
    the chosen answer must be better (arXiv 2307.09288), unless `data.format.margin` names the field
    with that of each pair; 0, for margin_ranking 1. smoothing: the fraction of pairs that are
    assumed to be swapped; for bradley_terry. centering: weight of (r_chosen + r_rejected)^2, which
    keeps rewards near zero (arXiv 2312.09244), 0.01 there; for pairs. heads: an ensemble of this
    many heads on the same model, each with weights of its own; the reward is their mean.
    """

    head: ClassVar[Literal["vocabulary", "scalar"]] = "scalar"
    kind: Literal["reward"] = "reward"
    loss: RewardLoss = "bradley_terry"
    margin: NonNegativeFloat | None = None
    smoothing: float = Field(0.0, ge=0, lt=0.5)
    centering: NonNegativeFloat = 0.0
    heads: PositiveInt = 1

    @model_validator(mode="after")
    def _used(self) -> Self:
        pairs = self.reads == "pairs"
        refuse_unused(self, "margin", pairs, "loss=bradley_terry or loss=margin_ranking")
        refuse_unused(self, "centering", pairs, "loss=bradley_terry or loss=margin_ranking")
        refuse_unused(self, "smoothing", self.loss == "bradley_terry", "loss=bradley_terry")
        return self

    @property
    def reads(self) -> Reads:
        return READS[self.loss]

    @property
    def columns(self) -> Mapping[str, Literal["row", "token"]]:
        return COLUMNS.get(self.reads, {})

    @property
    def optional_columns(self) -> Collection[str]:
        return ("margin",) if self.reads == "pairs" and self.margin is None else ()

    @property
    def scores(self) -> int:
        return self.heads

    @classmethod
    def learners(cls) -> Mapping[Reads, str]:
        return {reads: f"reward with loss={loss}" for loss, reads in READS.items()}

    def build(self, model: Transformer, load: Load, seed: int) -> RewardObjective:
        return RewardObjective(self, model.eval())  # no dropout: it would move the margins

    def margins(self, batch: Batch) -> Tensor | float:
        """() or (N, 1), of each pair."""
        if "margin" in batch.extra:
            return batch.extra["margin"][0::2, None]
        usual = 1.0 if self.loss == "margin_ranking" else 0.0
        return usual if self.margin is None else self.margin


class RewardObjective(Objective):
    """Of pairs, rows 2i and 2i + 1 of a batch are the chosen and the rejected answer of pair i.

    extra: `margin` of pairs; `score` and `place` of the answers of a ranking, which begins where
    the place is 0; `label` of an answer, or of the tokens that end a step.
    """

    def __init__(self, config: Reward, model: Transformer) -> None:
        super().__init__(model)
        self.config = config

    def loss(self, batch: Batch, context: Context) -> Loss:
        scores = self.model.head_scores(batch.tokens, context)  # (B, T, H)
        if self.config.reads == "steps":
            return self._of_steps(scores, batch)
        rewards = last_scores(scores, batch)
        match self.config.reads:
            case "pairs":
                found = self._of_pairs(rewards, batch)
            case "rankings":
                found = self._of_rankings(rewards, batch)
            case _:
                found = self._of_labels(rewards, batch)
        if self.config.heads == 1:
            return found
        spread = Term(rewards.detach().std(-1, correction=0).sum(), "rows")
        return Loss(found.terms, {**found.metrics, "spread": spread})

    def _of_pairs(self, rewards: Tensor, batch: Batch) -> Loss:
        config, margin = self.config, self.config.margins(batch)
        chosen, rejected = rewards[0::2], rewards[1::2]
        if config.loss == "margin_ranking":
            losses = margin_ranking(chosen, rejected, margin)
        else:
            losses = bradley_terry(chosen, rejected, margin, config.smoothing)
        terms: dict[str, Term] = {config.loss: Term(_sum(losses), "pairs")}
        if config.centering:
            squares = _sum((chosen + rejected).square())
            terms["centering"] = Term(squares, "pairs", config.centering)
        better, worse = chosen.detach().mean(-1), rejected.detach().mean(-1)
        metrics = {
            "accuracy": (better > worse).float().sum(),
            "margin": (better - worse).sum(),
            "reward_chosen": better.sum(),
            "reward_rejected": worse.sum(),
        }
        return Loss(terms, {name: Term(total, "pairs") for name, total in metrics.items()})

    def _of_rankings(self, rewards: Tensor, batch: Batch) -> Loss:
        scores, rankings = batch.extra["score"], rankings_of(batch)
        each = [plackett_luce(one, scores, rankings) for one in rewards.unbind(-1)]
        right = ordered_share(rewards.detach().mean(-1), scores, rankings)
        return Loss(
            {"plackett_luce": Term(_sum(torch.stack(each, -1)), "rankings")},
            {
                "accuracy": Term(right, "rankings"),
                "reward": Term(rewards.detach().mean(-1).sum(), "rows"),
            },
        )

    def _of_labels(self, rewards: Tensor, batch: Batch) -> Loss:
        errors = (rewards - batch.extra["label"][:, None]).square()
        reward = Term(rewards.detach().mean(-1).sum(), "rows")
        return Loss({"regression": Term(_sum(errors), "rows")}, {"reward": reward})

    def _of_steps(self, scores: Tensor, batch: Batch) -> Loss:
        labels = batch.extra["label"]
        known, wanted = ~labels.isnan(), labels.nan_to_num()
        every = wanted[..., None].expand(scores.shape)
        losses = F.binary_cross_entropy_with_logits(scores, every, reduction="none")
        right = known & ((scores.detach().mean(-1) > 0) == (wanted >= 0.5))
        return Loss(
            {"process": Term(_sum(losses * known[..., None]), "targets")},
            {"accuracy": Term(right.float().sum(), "targets")},
        )


def last_scores(scores: Tensor, batch: Batch) -> Tensor:
    """(B, T, H) scores -> (B, H), those at the last token of each row."""
    return scores[torch.arange(len(scores), device=scores.device), batch.last]


def rankings_of(batch: Batch) -> Tensor:
    """(B,) the number of the ranking that each row belongs to."""
    return (batch.extra["place"] == 0).cumsum(0)


def _sum(losses: Tensor) -> Tensor:
    """(..., H) -> (): the mean over heads, added up."""
    return losses.mean(-1).sum()
