"""Proximal policy optimisation with a critic (arXiv 1707.06347), as in RLHF (arXiv 2203.02155)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from culm.adapt.heads import scalar_weight, with_scalar_head
from culm.adapt.lora import plain
from culm.adapt.quantize.linear import is_quantized
from culm.batch import Batch, Loss, Reads, Term
from culm.config import SettingError, refuse_unused
from culm.model.context import Context
from culm.model.rule_updated import RuleUpdatedBuffers
from culm.model.transformer import Transformer
from culm.objective.experience import Experience
from culm.objective.objective import Load, Objective, ObjectiveConfig
from culm.objective.policy import (
    clipped_surrogate,
    divergence,
    generalised_advantages,
    importance_ratio,
    inference_context,
    policy_logprobs,
    sampled_logprobs,
    token_rewards,
    value_loss,
)
from culm.objective.reference import frozen, reference_of
from culm.parallel.ranks import Ranks


class PPO(ObjectiveConfig):
    """A value is estimated at each token; the policy stays near its start.

    clip: bound of the probability ratio. dual_clip: its upper bound where the advantage is negative
        (arXiv 1912.09729).
    gamma, decay: discount and lambda of generalised advantage estimation.
    kl: what one nat away from the start costs at each token.
    kl_target: nats of a completion that the cost is adapted to reach (arXiv 1909.08593).
    kl_horizon: completions over which the cost is adapted.
    kl_stop: nats of a token between the policy and the one that sampled, above which a step teaches
        the critic alone; the momentum of the optimizer still moves the policy.
    whiten: give advantages mean 0 and standard deviation 1 over the rollout. whiten_rewards: divide
        the rewards of tokens by their standard deviation; their mean is divided too, so that no
        token gets a bonus; the code of arXiv 1909.08593 keeps the mean.
    critic: path of a model with a scalar head, a reward model, that the critic starts from, trained
        in full; without one it starts from the policy with its adapters, and a new head.
    shared: the policy has a value head itself, and there is no critic.
    value_clip: bound of a value's move from the one before the update. value_weight: of the value
        loss in the loss.
    """

    reads: ClassVar[Reads] = "rollouts"
    columns: ClassVar[Mapping[str, Literal["row", "token"]]] = dict.fromkeys(
        ("old", "values", "advantages", "returns"), "token"
    )
    kind: Literal["ppo"] = "ppo"
    clip: PositiveFloat = 0.2
    dual_clip: PositiveFloat | None = None
    gamma: float = Field(1.0, ge=0, le=1)
    decay: float = Field(0.95, ge=0, le=1)
    kl: NonNegativeFloat = 0.05
    kl_target: PositiveFloat | None = None
    kl_horizon: PositiveInt = 10_000
    kl_stop: PositiveFloat | None = None
    whiten: bool = True
    whiten_rewards: bool = False
    critic: str | None = Field(None, min_length=1)
    shared: bool = False
    value_clip: PositiveFloat = 0.2
    value_weight: PositiveFloat = 0.1

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.shared and self.critic is not None:
            raise ValueError("shared: the policy has the value head, so there is no critic to load")
        if self.kl_target is not None and not self.kl:
            raise ValueError("kl_target: a cost of 0 cannot be adapted; give kl its first value")
        if self.dual_clip is not None and self.dual_clip <= 1 + self.clip:
            raise ValueError(f"dual_clip: {self.dual_clip} is not above 1 + clip")
        refuse_unused(self, "kl_horizon", self.kl_target is not None, "kl_target")
        return self

    def build(self, model: Transformer, load: Load, seed: int) -> PPOObjective:
        values: nn.Module
        if self.shared:
            values = plain(scalar_weight(model.config.width, seed).to(model.device), None)
        elif self.critic is None:
            values = copy.deepcopy(model).eval()
            with_scalar_head(values, seed)
        else:
            values = self._loaded(load).eval()
        return PPOObjective(self, model.eval(), values)

    def _loaded(self, load: Load) -> Transformer:
        assert self.critic is not None
        critic = load("train.objective.critic", self.critic)
        if critic.config.head != "scalar":
            raise SettingError(
                f"train.objective.critic: {self.critic} has no scalar head; give a model that "
                "culm train reward made, or leave it out"
            )
        if is_quantized(critic):
            raise SettingError(
                f"train.objective.critic: the weights of {self.critic} are quantised and "
                "cannot be trained; give the model that it was made of"
            )
        return critic


class AdaptiveKL(nn.Module, RuleUpdatedBuffers):
    """The cost of a nat, raised where the policy is further away than the target, and lowered where
    it is nearer (arXiv 1909.08593, section 2.2). Checkpoints hold it.
    """

    rule_updated = ("cost",)
    cost: Tensor  # (1,)

    def __init__(self, cost: float, target: float, horizon: int) -> None:
        super().__init__()
        self.target, self.horizon = target, horizon
        self.register_buffer("cost", torch.tensor([cost], dtype=torch.float64))

    def update(self, kl: float, completions: int) -> None:
        """kl: nats of a completion, on average over this many. It moves by a fifth at most, since a
        rollout of several horizons would make it negative.
        """
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.cost.mul_(1 + error * min(completions / self.horizon, 1.0))


class PPOObjective(Objective):
    """Clipped surrogate and clipped value loss of completions.

    values: the critic, or a value head on the states of the policy.
    extra: old log-probabilities and values of the policy that sampled, advantages, and returns;
    (B, T) each. Like the logits, the value at token t does not depend on the target of t.
    """

    def __init__(self, config: PPO, model: Transformer, values: nn.Module) -> None:
        super().__init__(model)
        self.config = config
        self.critic = values if isinstance(values, Transformer) else None
        self.value_head = None if isinstance(values, Transformer) else values
        self.reference = reference_of(model)
        self.adaptive = (
            AdaptiveKL(config.kl, config.kl_target, config.kl_horizon) if config.kl_target else None
        )

    def prepare(self, experience: Experience) -> Batch:
        config, learned, batch = self.config, experience.learned, experience.batch
        self._check_length(batch)
        old = experience.compute(lambda part: policy_logprobs(self.model, part))
        with frozen(self.model, self.reference) as reference:
            start = experience.compute(lambda part: policy_logprobs(reference, part))
        values = experience.compute(lambda part: self._values(part, inference_context(part)))
        values, away = values * learned, (old - start) * learned
        cost = config.kl if self.adaptive is None else float(self.adaptive.cost)
        rewards = token_rewards(experience.rewards, away, learned, cost)
        if config.whiten_rewards:
            rewards = experience.whiten(rewards, learned, centre=False)
        advantages = generalised_advantages(rewards, values, learned, config.gamma, config.decay)
        returns = (advantages + values) * learned
        kl = experience.mean(away.sum(1), experience.scored)
        metrics = {"kl": kl, "explained_variance": _explained(experience, returns, values)}
        if self.adaptive is not None:
            metrics["kl_cost"] = cost
            scored = float(experience.scored.sum())
            (completions,) = experience.ranks.sum([scored], experience.device)
            self.adaptive.update(kl, int(completions))
        if config.whiten:
            advantages = experience.whiten(advantages, learned)
        extra = {"old": old, "values": values, "advantages": advantages, "returns": returns}
        return replace(batch, extra={**batch.extra, **extra}, metrics={**batch.metrics, **metrics})

    def _check_length(self, batch: Batch) -> None:
        longest = 0 if batch.lengths is None else int(batch.lengths.max())
        if self.critic is not None and longest > self.critic.config.context:
            raise SettingError(
                f"train.objective.critic: a dialogue has {longest} tokens, and the context of "
                f"{self.config.critic} is {self.critic.config.context}; lower "
                "train.rollout.max_tokens"
            )

    def prepare_step(self, batches: list[Batch], number: int, ranks: Ranks) -> list[Batch]:
        """Without advantages where the policy is too far from the one that sampled."""
        if self.config.kl_stop is None:
            return batches
        total = count = 0.0
        for batch in batches:
            part = batch.to(self.model.device)
            with torch.no_grad():
                new = policy_logprobs(self.model, part)
            away = divergence(part.extra["old"], new, "k3") * (part.targets >= 0)
            total, count = total + float(away.double().sum()), count + batch.counts["targets"]
        total, count = ranks.sum([total, count], self.model.device)
        stopped = total / max(count, 1.0) > self.config.kl_stop
        return [self._stopped(batch, stopped) for batch in batches]

    def _stopped(self, batch: Batch, stopped: bool) -> Batch:
        factor = 0.0 if stopped else 1.0
        extra = {**batch.extra, "advantages": batch.extra["advantages"] * factor}
        return replace(
            batch, extra=extra, metrics={**batch.metrics, "policy_stopped": float(stopped)}
        )

    def _values(self, batch: Batch, context: Context) -> Tensor:
        """(B, T)."""
        if self.value_head is not None:
            return self.value_head(self.model.hidden(batch.tokens, context).float())[..., 0]
        assert self.critic is not None
        return self.critic.scores(batch.tokens, context)

    def _read(self, batch: Batch, context: Context) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the targets and values, (B, T) each, with one forward if it can."""
        if self.value_head is None:  # experts are balanced in this order: `Objective.models`
            return sampled_logprobs(self.model, batch, context), self._values(batch, context)
        hidden = self.model.hidden(batch.tokens, context)
        values = self.value_head(hidden.float())[..., 0]
        new = self.model.hidden_logprobs(hidden, batch.targets, batch.temperature, batch.vocabulary)
        return new, values

    def loss(self, batch: Batch, context: Context) -> Loss:
        config, extra, learned = self.config, batch.extra, batch.targets >= 0
        new, values = self._read(batch, context)
        ratio = importance_ratio(new, extra["old"], learned, "token")
        losses, clipped = clipped_surrogate(
            ratio, extra["advantages"], config.clip, config.clip, config.dual_clip
        )
        errors = value_loss(values, extra["values"], extra["returns"], config.value_clip)
        return Loss(
            {
                "policy": Term((losses * learned).sum(), "targets"),
                "value_loss": Term((errors * learned).sum(), "targets", config.value_weight),
            },
            {
                "clip_fraction": Term((clipped & learned).sum().float(), "targets"),
                "entropy": Term(-new.detach().sum(), "targets"),
            },
        )


def _explained(experience: Experience, returns: Tensor, values: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over the tokens of the rollout."""

    def variance(of: Tensor) -> float:
        mean = experience.mean(of, experience.learned)
        return experience.mean((of - mean).square(), experience.learned)

    return 1 - variance(returns - values) / max(variance(returns), 1e-12)
