"""On-policy batches: the model answers, rewards score, the objective prepares, steps are split off.

    rollout r    sample -> reward -> objective.prepare      once, with the weights of its first step
    its steps    epoch 0: batch 0, batch 1 ...   epoch 1: ...        `updates` of them

To the loop this is a dataset like any other. With one update a step is a function of the seed, its
number and the weights. With several, the weights that sampled are gone after the first: a
checkpoint in between holds the prepared rollout, so that a resumed run learns from the same rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from culm.batch import Batch
from culm.config import SettingError
from culm.objective.experience import ROUND, Experience
from culm.objective.objective import Load, Objective
from culm.parallel.ranks import Ranks
from culm.rollout.environment import Environment, Episode, Fitting, question_remarks
from culm.rollout.reward.reward import Score
from culm.rollout.sampler import Sampler
from culm.rollout.settings import RolloutConfig
from culm.rollout.state import restored, stored
from culm.rollout.trajectory import Trajectory, to_rows
from culm.seed import keyed
from culm.tokenizer.tokenizer import Tokenizer


class Rollouts:
    """`batch_size` completions a step over all ranks, in groups that answer the same prompt.

    With `shuffled` rewards are permuted over all completions of a batch: the control, from which
    nothing can be learned. (Within a group they would still show whether its answers were good.)
    """

    def __init__(
        self,
        objective: Objective,
        tokenizer: Tokenizer,
        environments: Sequence[Environment],
        config: RolloutConfig,
        load: Load,
        *,
        batch_size: int,
        micro_batch_size: int,
        seed: int,
        context: int | None = None,
        ranks: Ranks = Ranks(),
    ) -> None:
        if batch_size % config.group:
            raise ValueError(
                f"train.batch_size: {batch_size} is not a multiple of "
                f"train.rollout.group={config.group}"
            )
        if batch_size % (config.group * ranks.count):
            raise ValueError(
                f"train.batch_size: {batch_size} does not divide over {ranks.count} ranks in "
                f"groups of {config.group}"
            )
        self.objective, self.config, self.ranks = objective, config, ranks
        self.environments, self.seed, self.pad = environments, seed, tokenizer.end_of_text
        self.replaced = 0  # prompts of the last rollout that were too long
        self.vocabulary = tokenizer.vocabulary
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.sampler = Sampler(objective.model, tokenizer, config, seed, context)
        self.fitting = [Fitting(one, self.sampler.fits) for one in environments]
        self.rewards = [(one, one.build(load)) for one in config.reward]
        self.rows = batch_size // ranks.count  # of this rank in a batch
        self._number = -1  # of the rollout that is held
        self._held: Batch | None = None

    @cached_property
    def remarks(self) -> list[str]:
        """What a person should know about the questions, a sentence each.

        Raises:
            SettingError: none of them leaves room for an answer.
        """
        return question_remarks(self.fitting, self.sampler.context, self.seed + 1)

    @property
    def fingerprint(self) -> str:
        """Of the order of the prompts, and of how they are answered and scored."""
        episodes = [one.fingerprint(self.seed + 1) for one in self.environments]
        facts = (episodes, self.seed, self.batch_size, self.config)
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def step(self, number: int) -> list[Batch]:
        """The micro-batches of step `number` (from 0) for this rank."""
        rollout, update = divmod(number, self.config.updates)
        held = self._rollout(rollout, update)
        first = update % self.config.batches * self.rows
        lengths = held.lengths
        assert lengths is not None
        # Rows of similar length side by side, so that micro-batches hold little padding.
        rows = first + lengths[first : first + self.rows].argsort(stable=True)
        parts = [held.select(part, ROUND) for part in rows.split(self.micro_batch_size)]
        if self.config.updates == 1:
            self._held = None
        return parts

    def state(self, steps: int) -> dict[str, Tensor]:
        """The rollout whose steps are not all done, of all ranks, in one order for any of them."""
        if not steps % self.config.updates:
            return {}
        assert self._held is not None
        return stored(self._held, self.config.batches, self.ranks)

    def restore(self, steps: int, state: Mapping[str, Tensor]) -> None:
        """Take the rollout of `state` up again."""
        if state:
            self._number = steps // self.config.updates
            held = restored(state, self.config, self.ranks)
            self._held = replace(held, vocabulary=self.vocabulary)

    # -- a rollout ------------------------------------------------------------------------------

    def _rollout(self, number: int, update: int) -> Batch:
        if self._held is None or self._number != number:
            if update:
                raise RuntimeError(
                    f"rollout {number} was sampled with weights that are gone; resume from a "
                    "checkpoint, or start at its first step"
                )
            self._number, self._held = number, self._sampled(number)
        return self._held

    def _sampled(self, number: int) -> Batch:
        trajectories: list[Trajectory] = []
        self.replaced = 0
        for batch in range(number * self.config.batches, (number + 1) * self.config.batches):
            first = batch * self.batch_size + self.ranks.rank * self.rows
            trajectories += self.sampler.sample(self._episodes(first), first)
        rewards = self._rewards(trajectories)
        metrics = self._metrics(trajectories, rewards)
        if self.config.shuffled:
            rewards = self._shuffled(rewards, number)
        rows, behaviour = to_rows(trajectories, self.pad)
        rows = replace(
            rows, metrics=metrics, temperature=self.config.temperature, vocabulary=self.vocabulary
        )
        return self.objective.prepare(
            Experience(
                rows, rewards, behaviour, self.config.group, self.config.max_tokens,
                self.config.updates, self.micro_batch_size, self.objective.model.device, self.ranks,
            )
        )  # fmt: skip

    def _episodes(self, first: int) -> list[Episode]:
        """Of this rank's rows of a batch; those of a group have the same number."""
        group = self.config.group
        return [self._episode((first + row) // group) for row in range(self.rows)]

    def _episode(self, index: int) -> Episode:
        number, which = divmod(index, len(self.fitting))
        episode, skipped = self.fitting[which].reset(number, self.seed + 1)
        self.replaced += skipped > 0
        return episode

    def _rewards(self, trajectories: Sequence[Trajectory]) -> Tensor:
        total = torch.zeros(len(trajectories), dtype=torch.float64)
        for settings, score in self.rewards:
            total += settings.weight * _checked(settings.kind, score, trajectories)
        return total.float()

    def _shuffled(self, rewards: Tensor, number: int) -> Tensor:
        """Dealt out at random within each batch, over all ranks."""
        parts = []
        for batch, own in enumerate(rewards.split(self.rows)):
            place = slice(self.ranks.rank * self.rows, (self.ranks.rank + 1) * self.rows)
            everyone = [0.0] * self.batch_size
            everyone[place] = own.tolist()
            everyone = self.ranks.sum(everyone, self.objective.model.device)
            keyed(self.seed, "shuffle", number * self.config.batches + batch).shuffle(everyone)
            parts += everyone[place]
        return torch.tensor(parts)

    def _metrics(self, trajectories: Sequence[Trajectory], rewards: Tensor) -> dict[str, float]:
        count = len(trajectories)
        metrics = {
            "reward": float(rewards.mean()),
            "completion_tokens": sum(one.sampled for one in trajectories) / count,
            "stopped": sum(one.finish == "stop" for one in trajectories) / count,
            "replaced_prompts": self.replaced / count,
        }
        if self.config.group > 1:
            mixed = rewards.view(-1, self.config.group).std(1) > 0
            metrics["mixed_reward_groups"] = float(mixed.float().mean())
        return metrics


def _checked(kind: str, score: Score, trajectories: Sequence[Trajectory]) -> Tensor:
    """One finite number for each trajectory.

    Raises:
        SettingError: the reward gives something else, or fails.
    """
    try:
        found = torch.tensor(score(trajectories), dtype=torch.float64)
    except (SettingError, OSError, MemoryError):
        raise
    except Exception as error:  # a reward may be anyone's code
        reason = f"{type(error).__name__}: {error}"
        raise SettingError(f"train.rollout.reward: {kind} failed: {reason}") from error
    if found.shape != (len(trajectories),):
        raise SettingError(
            f"train.rollout.reward: {kind} gave numbers of shape {tuple(found.shape)} for "
            f"{len(trajectories)} answers; it must give one for each"
        )
    for number in (~found.float().isfinite()).nonzero()[:1, 0].tolist():
        said = str(trajectories[number].messages[-1]["content"])
        raise SettingError(
            f"train.rollout.reward: {kind} is {float(found[number])} for the answer {said[:40]!r}; "
            "it must be a finite number"
        )
    return found
