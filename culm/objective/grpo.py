"""Group relative policy optimisation (arXiv 2402.03300) and its close relatives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from culm.batch import Batch, Loss, Reads, Term
from culm.model.context import Context
from culm.model.transformer import Transformer
from culm.objective.experience import Experience
from culm.objective.objective import Load, Objective, ObjectiveConfig
from culm.objective.policy import (
    clipped_surrogate,
    group_advantages,
    policy_logprobs,
    sampled_logprobs,
)


class GRPO(ObjectiveConfig):
    """Completions of one prompt are compared with each other; there is no value model.

    scale: group divides by the group's standard deviation, none does not (arXiv 2503.20783).
    clip_low, clip_high: bounds of the probability ratio (asymmetric: DAPO, arXiv 2503.14476). They
    matter from the second update of a rollout (`train.rollout`); before it the ratio is one.
    average: over all tokens of the step (DAPO), over each sequence first (the paper), or over
    sequences counted as `train.rollout.max_tokens` long (Dr. GRPO).
    """

    reads: ClassVar[Reads] = "rollouts"
    columns: ClassVar[Mapping[str, Literal["row", "token"]]] = {
        "advantages": "row", "scales": "row", "old": "token",
    }  # fmt: skip
    least_group: ClassVar[int] = 2
    kind: Literal["grpo"] = "grpo"
    scale: Literal["group", "none"] = "group"
    clip_low: NonNegativeFloat = 0.2
    clip_high: NonNegativeFloat = 0.28
    average: Literal["tokens", "sequences", "constant"] = "tokens"

    def build(self, model: Transformer, load: Load, seed: int) -> GRPOObjective:
        return GRPOObjective(self, model.eval())  # no dropout: it would move the ratio


class GRPOObjective(Objective):
    """Clipped surrogate of completions with one advantage each.

    extra: advantages and scales (B,), and from the second update on `old` (B, T).
    """

    def __init__(self, config: GRPO, model: Transformer) -> None:
        super().__init__(model)
        self.config = config
        self._per = "targets" if config.average == "tokens" else "rows"

    def prepare(self, experience: Experience) -> Batch:
        batch, rewards = experience.batch, experience.rewards
        extra = {
            "advantages": group_advantages(rewards, experience.group, self.config.scale),
            "scales": self._scales(experience),
        }
        if experience.updates > 1:
            extra["old"] = experience.compute(lambda part: policy_logprobs(self.model, part))
        return replace(batch, extra={**batch.extra, **extra})

    def _scales(self, experience: Experience) -> Tensor:
        """(N,) what each token of a completion counts."""
        lengths = experience.learned.sum(1)
        match self.config.average:
            case "tokens":
                return torch.ones(len(lengths))
            case "sequences":
                return 1.0 / lengths.clamp_min(1)
            case "constant":
                # Never the longest completion: that would differ between micro-batches.
                return torch.full((len(lengths),), 1.0 / experience.max_tokens)

    def loss(self, batch: Batch, context: Context) -> Loss:
        config, extra = self.config, batch.extra
        new = sampled_logprobs(self.model, batch, context)
        # With one update the policy that sampled is the one that learns: the ratio is one, with
        # the gradient of log pi.
        old = extra.get("old", new.detach())
        losses, clipped = clipped_surrogate(
            new, old, extra["advantages"], config.clip_low, config.clip_high
        )
        learned = batch.targets >= 0
        total = (losses * extra["scales"][:, None] * learned).sum()
        return Loss(
            {"policy": Term(total, self._per)},
            {
                "clipped": Term((clipped * learned).sum(), "targets"),
                "nll": Term(-new.detach().sum(), "targets"),
            },
        )
