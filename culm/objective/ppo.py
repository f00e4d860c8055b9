"""Proximal policy optimisation with a critic (arXiv 1707.06347), as in RLHF (arXiv 2203.02155)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from culm.adapt.heads import with_scalar_head
from culm.adapt.quantize.linear import is_quantized
from culm.batch import Batch, Loss, Reads, Term
from culm.config import SettingError
from culm.model.context import Context
from culm.model.transformer import Transformer
from culm.objective.experience import Experience
from culm.objective.objective import Load, Objective, ObjectiveConfig
from culm.objective.policy import (
    clipped_surrogate,
    generalised_advantages,
    importance_ratio,
    inference_context,
    last_learned,
    policy_logprobs,
    sampled_logprobs,
)
from culm.objective.reference import frozen, reference_of


class PPO(ObjectiveConfig):
    """A critic estimates the return at each token; the policy stays near its start.

    clip: bound of the probability ratio. gamma, decay: discount and lambda of generalised advantage
    estimation. kl: what one nat away from the start costs at each token. whiten: give advantages
    mean 0 and standard deviation 1 over the rollout. critic: path of a model with a scalar head, a
    reward model, that the critic starts from, trained in full; without one it starts from the
    policy with its adapters, and a new head. value_clip: bound of a value's move from the one
    before the update. value_weight: of the value loss in the loss.
    """

    reads: ClassVar[Reads] = "rollouts"
    columns: ClassVar[Mapping[str, Literal["row", "token"]]] = dict.fromkeys(
        ("old", "values", "advantages", "returns"), "token"
    )
    kind: Literal["ppo"] = "ppo"
    clip: PositiveFloat = 0.2
    gamma: float = Field(1.0, ge=0, le=1)
    decay: float = Field(0.95, ge=0, le=1)
    kl: NonNegativeFloat = 0.05
    whiten: bool = True
    critic: str | None = Field(None, min_length=1)
    value_clip: PositiveFloat = 0.2
    value_weight: PositiveFloat = 0.1

    def build(self, model: Transformer, load: Load, seed: int) -> PPOObjective:
        if self.critic is None:
            critic = copy.deepcopy(model)
            with_scalar_head(critic, seed)
        else:
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
        return PPOObjective(self, model.eval(), critic.eval())


class PPOObjective(Objective):
    """Clipped surrogate and clipped value loss of completions.

    extra: old log-probabilities and values of the policy that sampled, advantages, and returns;
    (B, T) each. The value at token t is read before its target is known, as the logits are.
    """

    def __init__(self, config: PPO, model: Transformer, critic: Transformer) -> None:
        super().__init__(model)
        self.config, self.critic = config, critic
        self.reference = reference_of(model)

    def prepare(self, experience: Experience) -> Batch:
        config, learned = self.config, experience.learned
        lengths = experience.batch.lengths
        longest, known = 0 if lengths is None else int(lengths.max()), self.critic.config.context
        if longest > known:
            raise SettingError(
                f"train.objective.critic: a dialogue has {longest} tokens, and the context of "
                f"{config.critic} is {known}; lower train.rollout.max_tokens"
            )
        old = experience.compute(lambda part: policy_logprobs(self.model, part))
        with frozen(self.model, self.reference) as reference:
            start = experience.compute(lambda part: policy_logprobs(reference, part))
        values = experience.compute(self._values)
        divergence = (old - start) * learned
        earned = experience.rewards.nan_to_num(0.0)[:, None]  # nothing is learned where it is nan
        rewards = last_learned(learned) * earned - config.kl * divergence
        advantages = generalised_advantages(rewards, values, learned, config.gamma, config.decay)
        returns = (advantages + values) * learned
        if config.whiten:
            advantages = experience.whiten(advantages, learned)
        rows = torch.ones(len(learned), dtype=torch.bool)
        batch = experience.batch
        return replace(
            batch,
            extra={
                **batch.extra, "old": old, "values": values * learned,
                "advantages": advantages, "returns": returns,
            },
            metrics={**batch.metrics, "kl": experience.mean(divergence.sum(1), rows)},
        )  # fmt: skip

    def _values(self, batch: Batch) -> Tensor:
        return self.critic.scores(batch.tokens, inference_context(batch))

    def loss(self, batch: Batch, context: Context) -> Loss:
        config, extra, learned = self.config, batch.extra, batch.targets >= 0
        new = sampled_logprobs(self.model, batch, context)
        ratio = importance_ratio(new, extra["old"], learned, "token")
        losses, clipped = clipped_surrogate(ratio, extra["advantages"], config.clip, config.clip)
        values = self.critic.scores(batch.tokens, context)
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


def value_loss(values: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Half the squared error of each value, or that of the value clipped near the old one."""
    bounded = old + (values - old).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns).square(), (bounded - returns).square())
