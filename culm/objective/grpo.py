"""Group relative policy optimisation (arXiv 2402.03300) and its relatives, one name a paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import NonNegativeFloat, PositiveFloat, model_validator
from torch import Tensor

from culm.batch import Batch, Loss, Reads, Term
from culm.config import refuse_unused
from culm.model.context import Context
from culm.model.transformer import Transformer
from culm.objective.experience import Experience
from culm.objective.objective import Load, Objective, ObjectiveConfig
from culm.objective.policy import (
    Baseline,
    Correction,
    Estimate,
    Ratio,
    Scale,
    clipped_surrogate,
    clipped_weight,
    divergence,
    group_advantages,
    importance_ratio,
    policy_logprobs,
    sampled_logprobs,
    sampler_weights,
)
from culm.objective.reference import frozen, reference_of

Variant = Literal["grpo", "drgrpo", "dapo", "gspo", "cispo", "rloo", "reinforce++"]

# The settings of each paper where they differ from the fields below.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "grpo": {},
    "drgrpo": {"scale": "none", "average": "constant"},
    "dapo": {"clip_high": 0.28, "average": "tokens"},
    "gspo": {"ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4},
    "cispo": {"surrogate": "cispo", "clip_high": 4.0, "average": "tokens"},
    "rloo": {
        "baseline": "others", "scale": "none", "ratio": "product", "kl": 0.05, "kl_in": "reward",
    },
    "reinforce++": {
        "baseline": "none", "scale": "batch", "average": "tokens", "kl": 0.01,
        "kl_in": "token_reward",
    },
}  # fmt: skip
RESAMPLED = 4  # DAPO: rounds in which groups of equal rewards are replaced, unless given


class GRPO(ObjectiveConfig):
    """The advantage of a completion is relative to the others of its prompt; there is no critic.

    variant: the settings of a paper, each of which can also be set by itself: grpo, drgrpo (arXiv
        2503.20783), dapo (arXiv 2503.14476), gspo (arXiv 2507.18071), cispo (arXiv 2506.13585),
        rloo (arXiv 2402.14740) or reinforce++ (arXiv 2501.03262). dapo also replaces groups of
        equal rewards (`train.rollout.resample`); its overlong shaping is a reward of kind length.
    baseline: what is subtracted from a reward: the mean of the group, that of the other
        completions (leave one out), or none.
    scale: divide by the standard deviation of the group, or give all tokens of the rollout mean 0
        and standard deviation 1 (batch), or none.
    ratio: the probability ratio of each token, or for all tokens of a completion their geometric
        mean (sequence) or the product of all. It is one at the first update of a rollout.
    surrogate: clip the ratio (PPO), or keep the gradient of all tokens and clip their weight
        (cispo).
    clip_low, clip_high: bounds of the ratio, 1 - clip_low and 1 + clip_high.
    dual_clip: bound of the ratio where the advantage is negative (two-sided clip).
    average: over all tokens of the step, over each sequence first, or over sequences counted as
        `train.rollout.max_tokens` long (constant).
    kl: what one nat away from the start costs; needs a reference model. kl_in: in the loss, in the
        reward of the completion, or in the reward of each token. kl_estimate: k1, k2 or k3
        (`culm.objective.policy.divergence`), for kl_in=loss.
    correction: weigh tokens or sequences for the difference between the engine that sampled and
        the trainer, or leave out sequences that differ too much (mask). correction_cap: the
        greatest weight; for mask, the greatest ratio of the two policies that is learned from.
    """

    reads: ClassVar[Reads] = "rollouts"
    columns: ClassVar[Mapping[str, Literal["row", "token"]]] = {
        "advantages": "token", "scales": "row", "old": "token", "sampler": "token",
        "reference": "token",
    }  # fmt: skip
    kind: Literal["grpo"] = "grpo"
    variant: Variant = "grpo"
    baseline: Baseline = "mean"
    scale: Scale = "group"
    ratio: Ratio = "token"
    surrogate: Literal["clip", "cispo"] = "clip"
    clip_low: NonNegativeFloat = 0.2
    clip_high: NonNegativeFloat = 0.2
    dual_clip: PositiveFloat | None = None
    average: Literal["tokens", "sequences", "constant"] = "sequences"
    kl: NonNegativeFloat = 0.0
    kl_in: Literal["loss", "reward", "token_reward"] = "loss"
    kl_estimate: Estimate = "k3"
    correction: Correction = "none"
    correction_cap: PositiveFloat = 2.0

    @model_validator(mode="before")
    @classmethod
    def _usual(cls, values: Any) -> Any:
        """With the settings of the variant where they are not given."""
        usual = VARIANTS.get(values.get("variant", "grpo")) if isinstance(values, dict) else None
        return values if usual is None else {**usual, **values}

    @model_validator(mode="after")
    def _read(self) -> Self:
        if self.dual_clip is not None and self.dual_clip <= 1 + self.clip_high:
            raise ValueError(f"dual_clip: {self.dual_clip} is not above 1 + clip_high")
        if self.surrogate == "cispo" and self.dual_clip is not None:
            raise ValueError("dual_clip: cispo clips the weight on one side only")
        if self.baseline == "none" and self.scale == "group":
            # Equal rewards have no deviation, so that advantages would be as large as 10,000.
            raise ValueError("scale: group needs a baseline; give baseline=mean, or scale=batch")
        refuse_unused(self, "clip_low", self.surrogate == "clip", "surrogate=clip")
        refuse_unused(self, "kl_estimate", self.kl_in == "loss", "kl_in=loss")
        refuse_unused(self, "correction_cap", self.correction != "none", "a correction")
        return self

    @property
    def least_group(self) -> int:
        return 1 if self.baseline == "none" else 2

    @property
    def off_policy(self) -> bool:
        return self.correction != "none"

    @property
    def resamples(self) -> int:
        return RESAMPLED if self.variant == "dapo" else 0

    def build(self, model: Transformer, load: Load, seed: int) -> GRPOObjective:
        return GRPOObjective(self, model.eval())  # no dropout: it would move the ratio


class GRPOObjective(Objective):
    """Clipped surrogate of completions.

    extra: advantages (B, T), scales (B,) that divide the sums, the sampler's log-probabilities,
    those of the reference where the loss reads them, and from the second update on those of the
    policy before the first (`old`); (B, T) each.
    """

    def __init__(self, config: GRPO, model: Transformer) -> None:
        super().__init__(model)
        self.config = config
        self.reference = reference_of(model) if config.kl else None
        self._per = "targets" if config.average == "tokens" else "rows"

    def prepare(self, experience: Experience) -> Batch:
        config, learned, batch = self.config, experience.learned, experience.batch
        extra = {"scales": self._scales(experience), "sampler": experience.behaviour}
        metrics = dict(batch.metrics)
        if experience.updates > 1 or config.kl:
            old = experience.compute(lambda part: policy_logprobs(self.model, part))
            if experience.updates > 1:
                extra["old"] = old
        away = torch.zeros_like(experience.behaviour)
        if config.kl:
            with frozen(self.model, self.reference) as reference:
                start = experience.compute(lambda part: policy_logprobs(reference, part))
            away = divergence(old, start, "k1") * learned
            metrics["kl"] = experience.mean(away.sum(1), experience.scored)
            if config.kl_in == "loss":
                extra["reference"] = start
        extra["advantages"] = self._advantages(experience, away)
        return replace(batch, extra={**batch.extra, **extra}, metrics=metrics)

    def _advantages(self, experience: Experience, away: Tensor) -> Tensor:
        """(N, T), 0 where nothing is learned. away: k1 estimates of the divergence."""
        config, rewards, learned = self.config, experience.rewards, experience.learned
        if config.kl_in == "reward":
            rewards = rewards - config.kl * away.sum(1)
        found = group_advantages(rewards, experience.group, config.scale, config.baseline)
        advantages = found[:, None] * learned
        if config.kl_in == "token_reward":  # a token is charged for what follows it
            advantages = advantages - config.kl * away.flip(1).cumsum(1).flip(1) * learned
        return experience.whiten(advantages, learned) if config.scale == "batch" else advantages

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
        config, extra, learned = self.config, batch.extra, batch.targets >= 0
        new = sampled_logprobs(self.model, batch, context)
        # With one update the policy that sampled is the one that learns: the ratio is one, with
        # the gradient of log pi.
        old = extra.get("old", new.detach())
        losses, clipped = self._surrogate(new, old, learned, extra["advantages"])
        weights = sampler_weights(
            old, extra["sampler"], learned, config.correction, config.correction_cap
        )
        counted = extra["scales"][:, None] * learned
        terms = {"policy": Term((losses * weights * counted).sum(), self._per)}
        if config.kl and config.kl_in == "loss":
            away = divergence(new, extra["reference"], config.kl_estimate)
            terms["kl_loss"] = Term((away * counted).sum(), self._per, config.kl)
        sampler = ((old - extra["sampler"]).abs() * learned).sum()
        return Loss(
            terms,
            {
                "clip_fraction": Term((clipped & learned).sum().float(), "targets"),
                "entropy": Term(-(new.detach() * learned).sum(), "targets"),
                "sampler_difference": Term(sampler, "targets"),
            },
        )

    def _surrogate(
        self, new: Tensor, old: Tensor, learned: Tensor, advantages: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss of each token, and where it was clipped; (B, T) each."""
        config = self.config
        ratio = importance_ratio(new, old, learned, config.ratio)
        if config.surrogate == "cispo":
            return clipped_weight(new, ratio, advantages, config.clip_high)
        return clipped_surrogate(
            ratio, advantages, config.clip_low, config.clip_high, config.dual_clip
        )
