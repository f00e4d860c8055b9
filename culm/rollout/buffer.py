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
from culm.engine.request import Completion
from culm.objective.experience import ROUND, Experience
from culm.objective.objective import Load, Objective
from culm.parallel.ranks import Ranks
from culm.rollout.completer import Export
from culm.rollout.environment import Environment, Episode, Fitting, question_remarks
from culm.rollout.groups import Group, filled, metrics_of
from culm.rollout.pass_rate import PassRates
from culm.rollout.reward.reward import RewardConfig
from culm.rollout.sampler import Sampler
from culm.rollout.scoring import Problems, Scales, Scoring
from culm.rollout.settings import RolloutConfig
from culm.rollout.state import restored, stored
from culm.rollout.trajectory import to_rows, without_targets
from culm.seed import keyed
from culm.tokenizer.tokenizer import Tokenizer

TOO_LONG, OUTSIDE = "replaced_prompts", "filtered_prompts"  # metrics: why another was asked
PROBES = 4  # prompts by which a sampler is checked
APART = 1_000_000_007  # a prime: between the numbers of a group and of one that replaces it


class Rollouts:
    """`batch_size` completions a step over all ranks, in groups that answer the same prompt.

    With `shuffled` rewards are permuted over all completions of a batch: the control, from which
    nothing can be learned. (Within a group they would still show whether its answers were good.)

    compares: whether the objective learns from the differences within a group alone. export: writes
    the policy for a sampler that reads it from a folder.
    """

    def __init__(
        self,
        objective: Objective,
        tokenizer: Tokenizer,
        environments: Sequence[Environment],
        config: RolloutConfig,
        load: Load,
        *,
        rewards: Sequence[RewardConfig],
        batch_size: int,
        micro_batch_size: int,
        seed: int,
        context: int | None = None,
        ranks: Ranks = Ranks(),
        compares: bool = True,
        export: Export | None = None,
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
        self.compares = compares
        self.rates = PassRates(config.curriculum, seed)
        self._reasons = (TOO_LONG,) if config.curriculum is None else (TOO_LONG, OUTSIDE)
        self.replaced = dict.fromkeys(self._reasons, 0)  # completions to another prompt
        self.vocabulary = tokenizer.vocabulary
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.sampler = Sampler(objective.model, tokenizer, config, seed, context, ranks, export)
        self.fitting = [Fitting(one, self.sampler.fits) for one in environments]
        self.scoring, self.problems = Scoring(rewards, load, seed), Problems()
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
        rewards = list(self.scoring.rewards.items())
        facts = (episodes, self.seed, self.batch_size, self.config, rewards)
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def try_rewards(self) -> None:
        """Have code of a user score the right answer to the first question.

        Raises:
            SettingError: it cannot.
        """
        episode, _ = self.fitting[0].reset(0, self.seed + 1)
        answer = str(episode.fields.get("answer", ""))
        trajectory, tokens = self.sampler.start(episode, 0), self.sampler.tokenizer.encode(answer)
        trajectory.say(Completion(tuple(tokens), (0.0,) * len(tokens), "stop"), answer)
        self.scoring.try_on(trajectory)

    def check_sampler(self) -> None:
        """Whether the sampler gives answers of the policy; every rank calls it.

        Raises:
            SettingError: it does not.
        """
        self.sampler.check(self._first_episodes())

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
        """The rollout whose steps are not all done, of all ranks, in one order for any of them; and
        the pass rates of a curriculum.
        """
        if not steps % self.config.updates:
            return self.rates.state()
        assert self._held is not None
        return {**stored(self._held, self.config.batches, self.ranks), **self.rates.state()}

    def restore(self, steps: int, state: Mapping[str, Tensor]) -> None:
        """Take the rollout and the pass rates of `state` up again."""
        if state := self.rates.restore(state):
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
            with self.ranks.pulse.waiting():  # for answers, rewards and their servers
                self._number, self._held = number, self._sampled(number)
        return self._held

    def _first_episodes(self) -> list[Episode]:
        return [self.fitting[0].reset(index, self.seed + 1)[0] for index in range(PROBES)]

    def _sampled(self, number: int) -> Batch:
        self.sampler.renew(self._first_episodes())
        self.replaced = dict.fromkeys(self._reasons, 0)
        batches = range(number * self.config.batches, (number + 1) * self.config.batches)
        kept, played = list[Group](), list[Group]()
        for batch in batches:
            groups, every = self._groups(batch)
            kept, played = kept + groups, played + every
        metrics = metrics_of(
            played, self.scoring.shown, self.replaced, self.compares, self.ranks,
            self.objective.model.device,
        )  # fmt: skip
        self.problems.check(played, metrics["unscored"], self.ranks)
        self.rates.update(played, self.ranks)
        rewards = torch.tensor([reward for group in kept for reward in group.rewards])
        if self.config.shuffled:
            rewards = self._shuffled(rewards, number)
        rows, sampler = to_rows([one for group in kept for one in group.trajectories], self.pad)
        rows = replace(
            without_targets(rows, rewards.isnan()), metrics=metrics,
            temperature=self.config.temperature, vocabulary=self.vocabulary,
        )  # fmt: skip
        return self.objective.prepare(
            Experience(
                rows, rewards, sampler, self.config.group, self.config.max_tokens,
                self.config.updates, self.micro_batch_size, self.objective.model.device, self.ranks,
            )
        )  # fmt: skip

    def _groups(self, batch: int) -> tuple[list[Group], list[Group]]:
        """This rank's share of a batch, and all that it played for it.

        Groups of equal rewards are replaced, for some rounds, whichever rank played the others.
        """
        ranks, share = self.ranks, self.rows // self.config.group
        first = batch * share * ranks.count
        numbers = range(first + ranks.rank * share, first + (ranks.rank + 1) * share)
        kept, scales = self._play(numbers)
        played = list(kept)
        for number in range(1, (self.config.resample or 0) + 1):
            missing = ranks.gather(sum(not group.mixed for group in kept))
            wanted = sum(missing)
            if not wanted:
                break
            each = -(-wanted // ranks.count)
            start, end = (min(wanted, (ranks.rank + more) * each) for more in (0, 1))
            place = first + number * APART
            fresh, _ = self._play(range(place + start, place + end), scales)
            found = [one for part in ranks.gather([g for g in fresh if g.mixed]) for one in part]
            kept = filled(kept, found[sum(missing[: ranks.rank]) :])
            played += fresh
        return kept, played

    def _play(self, numbers: range, scales: Scales | None = None) -> tuple[list[Group], Scales]:
        """The groups of these numbers; everything that is random depends on the number alone.

        scales: of whitened rewards; unless given, those of what all ranks play now.
        """
        size = self.config.group
        episodes = [episode for number in numbers for episode in self._episodes(number)]
        trajectories = self.sampler.sample(episodes, numbers.start * size)
        # What a server samples, or a program scores, need not be the same twice.
        trajectories, parts = self.ranks.alike((trajectories, self.scoring.parts(trajectories)))
        if scales is None:
            scales = self.scoring.scales(parts, self.ranks, self.objective.model.device)
        totals = self.scoring.totals(parts, scales)
        groups = [
            Group(
                trajectories[start : start + size], totals[start : start + size],
                {name: scores[start : start + size] for name, scores in parts.items()},
            )
            for start in range(0, len(trajectories), size)
        ]  # fmt: skip
        return groups, scales

    def _episodes(self, index: int) -> list[Episode]:
        """Those of a group: one question."""
        number, which = divmod(index, len(self.fitting))
        fitting, seed = self.fitting[which], self.seed + 1
        place, passed = self.rates.place(fitting, number, seed)
        found = [fitting.reset(place, seed) for _ in range(self.config.group)]
        self.replaced[TOO_LONG] += sum(skipped > 0 for _, skipped in found)
        if passed:
            self.replaced[OUTSIDE] += len(found)
        return [episode for episode, _ in found]

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
