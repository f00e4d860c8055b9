"""Group relative policy optimisation (arXiv 2402.03300) and its close relatives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from culm.batch import Batch, Loss
from culm.config import Config
from culm.model.transformer import Transformer
from culm.objective.experts import watching, with_experts


class GRPO(Config):
    """Completions of one prompt are compared with each other; no value model.

    scale: group divides by the group's standard deviation, none does not (arXiv 2503.20783).
    clip_low, clip_high: bounds of the probability ratio (asymmetric: DAPO, arXiv 2503.14476). They
    act only in batches that bring `old`, the log-probabilities of an earlier policy: a run makes
    one update of each rollout, and its ratio is one.
    average: over all tokens of the step (DAPO), over each sequence first (the paper), or over
    sequences counted as `max_tokens` long (Dr. GRPO). temperature: of sampling, and so of the
    policy. max_tokens: the greatest length of a completion. shuffled: a control run, whose
    rewards are dealt out at random so that nothing can be learned from them.
    """

    on_policy: ClassVar[bool] = True
    pairs: ClassVar[bool] = False
    kind: Literal["grpo"] = "grpo"
    group: int = Field(8, ge=2)
    scale: Literal["group", "none"] = "group"
    clip_low: NonNegativeFloat = 0.2
    clip_high: NonNegativeFloat = 0.28
    average: Literal["tokens", "sequences", "constant"] = "tokens"
    temperature: PositiveFloat = 1.0
    max_tokens: PositiveInt = 32
    shuffled: bool = False

    def build(self, model: Transformer) -> GRPOObjective:
        return GRPOObjective(self, model)


@dataclass(frozen=True)
class Experience:
    """Completions of N prompts with G each, in order, and what they earned.

    batch: rows of prompt and completion, the completion's tokens learned; rewards: (N * G,).
    """

    batch: Batch
    rewards: Tensor


def advantages(rewards: Tensor, group: int, scale: str) -> Tensor:
    """(N * G,) rewards -> advantages within groups; std is Bessel-corrected, eps 1e-4 as in TRL."""
    grouped = rewards.view(-1, group)
    centred = grouped - grouped.mean(1, keepdim=True)
    if scale == "group":
        centred = centred / (grouped.std(1, keepdim=True) + 1e-4)
    return centred.flatten()


def policy_loss(
    new: Tensor, old: Tensor, advantage: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """Clipped surrogate per token, and where it was clipped.

    new, old: (B, T) log-probabilities; advantage: (B,) or (B, T).
    """
    advantage = advantage[:, None] if advantage.ndim == 1 else advantage
    ratio = (new - old).clamp(-20, 20).exp()
    bounded = ratio.clamp(1 - low, 1 + high)
    losses = torch.maximum(-advantage * ratio, -advantage * bounded)
    return losses, -advantage * bounded > -advantage * ratio


class GRPOObjective(nn.Module):
    """Batch (with `advantages`, `scales` and perhaps `old` in extra) -> clipped surrogate."""

    def __init__(self, config: GRPO, model: Transformer) -> None:
        super().__init__()
        self.config, self.model = config, model.eval()  # no dropout: it would move the ratio

    def prepare(self, experience: Experience) -> Batch:
        """The batch that is learned from: advantages, and how each token counts."""
        batch, config = experience.batch, self.config
        learned = batch.targets >= 0
        lengths = learned.sum(1).clamp_min(1)
        match config.average:
            case "tokens":
                weight, scales = int(learned.sum()), torch.ones(len(lengths))
            case "sequences":
                weight, scales = len(lengths), 1.0 / lengths
            case "constant":
                # Never the longest of the batch: that would differ between micro-batches.
                weight, scales = len(lengths) * config.max_tokens, torch.ones(len(lengths))
        extra = dict(batch.extra) | {
            "advantages": advantages(experience.rewards, config.group, config.scale),
            "scales": scales,
        }
        return replace(batch, weight=weight, extra=extra)

    def forward(self, batch: Batch) -> Loss:
        config, extra = self.config, batch.extra
        context = watching(batch)
        learned = batch.targets >= 0
        new = self.model.logprobs(batch.tokens, batch.targets, context, config.temperature)
        # One update per rollout: the policy that sampled is the one that learns, and the ratio is
        # one with the gradient of log pi.
        old = extra.get("old", new.detach())
        losses, clipped = policy_loss(
            new, old, extra["advantages"], config.clip_low, config.clip_high
        )
        counts = extra["scales"][:, None] * learned
        metrics = {"clipped": (clipped * counts).sum(), "nll": -(new.detach() * counts).sum()}
        return with_experts(Loss((losses * counts).sum(), metrics), context)
