"""The score that a reward model gives to a dialogue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Literal

import torch
from pydantic import Field, PositiveInt

from culm.config import SettingError
from culm.model.context import Context
from culm.model.transformer import Transformer
from culm.objective.objective import Load
from culm.rollout.reward.reward import RewardConfig, Score
from culm.rollout.trajectory import Trajectory


class ModelScore(RewardConfig):
    """path: a model that `culm train reward` made, or a Hugging Face folder of one for sequence
    classification with one label, with the tokenizer of the policy.

    The reward is its score at the last token of the dialogue, or the mean of its heads. batch_size:
    dialogues read at once.
    """

    kind: Literal["model"] = "model"
    path: str = Field(min_length=1)
    batch_size: PositiveInt = 32

    def build(self, load: Load, seed: int) -> Score:
        heads = scorer("train.reward.path", self.path, load, self.batch_size)
        return lambda trajectories: list(map(fmean, heads(trajectories)))


Heads = Callable[[Sequence[Trajectory]], list[list[float]]]


def scorer(setting: str, path: str, load: Load, batch_size: int) -> Heads:
    """The scores of the reward model of a path, which a setting names: of each head, for each
    dialogue.
    """
    model = load(setting, path).eval().requires_grad_(False)
    if model.config.head != "scalar":
        raise SettingError(
            f"{setting}: {path} has no scalar head; give a model that culm train reward made"
        )

    @torch.inference_mode()
    def scores(trajectories: Sequence[Trajectory]) -> list[list[float]]:
        found: list[list[float]] = []
        for start in range(0, len(trajectories), batch_size):
            rows = [one.tokens for one in trajectories[start : start + batch_size]]
            length = max(map(len, rows))
            if length > model.config.context:
                raise SettingError(
                    f"{setting}: a dialogue has {length} tokens, and the context of {path} is "
                    f"{model.config.context}; lower train.rollout.max_tokens"
                )
            found += _last_scores(model, rows, length)
        return found

    return scores


def _last_scores(
    model: Transformer, rows: Sequence[Sequence[int]], length: int
) -> list[list[float]]:
    tokens = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows])
    tokens = tokens.to(model.device)
    last = torch.tensor([len(row) - 1 for row in rows], device=model.device)
    scores = model.head_scores(tokens, Context.plain(tokens))  # causal: padding is behind
    return scores[torch.arange(len(rows), device=model.device), last].tolist()
