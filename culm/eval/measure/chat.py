"""How good the replies of a model are, by a judge, a reward model or a function."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt, field_validator

from culm.config import SettingError, some_of
from culm.convert.load import load_model
from culm.engine.sampling import Sampling
from culm.eval.answers_file import AnswersFile
from culm.eval.dialogue import Said, converse, rewards_of, trajectory
from culm.eval.interval import Estimate, bootstrap
from culm.eval.local import LocalModel
from culm.eval.measure.measure import MeasureConfig, Subject
from culm.eval.questions import distinct
from culm.eval.responder import Generation, Responder
from culm.eval.turns import ended
from culm.model.ability import require_vocabulary
from culm.model.transformer import Transformer
from culm.rollout.reward.ensemble import Ensemble
from culm.rollout.reward.format import FormatBonus
from culm.rollout.reward.function import FunctionScore
from culm.rollout.reward.judge import Judge
from culm.rollout.reward.model import ModelScore
from culm.rollout.reward.reward import RewardConfig, scores_of
from culm.task import Tasks
from culm.tokenizer.tokenizer import Tokenizer

Rated = some_of(Judge | ModelScore | Ensemble | FunctionScore | FormatBonus)
EVERY = "all"


class Chat(MeasureConfig):
    """Result: `rewards`, the mean reward of the replies to each task, to each turn where there are
    several, and of `all`, with a 95 % interval; `unscored`: replies that could not be scored;
    `dialogues_ended_by_context`: how many ended since it had no room for a further reply.

    tasks: where the requests come from; one with several turns is continued with the model's own
    replies. questions: distinct requests per task; all of them if it is null.

    reward: as in a rollout: a judge, reward models, functions. Two models (--against) are compared
    in pairs by the same judge, each pair in both orders; its form is otherwise a rating.

    max_tokens: limit of a reply. temperature: of replies; at 0, the most likely token is taken.
    """

    kind: Literal["chat"] = "chat"
    tasks: Tasks = ()
    questions: PositiveInt | None = None
    reward: Rated  # type: ignore[valid-type]
    max_tokens: PositiveInt = 512
    temperature: NonNegativeFloat = 0.0

    @field_validator("reward")
    @classmethod
    def _rates(cls, rewards: Sequence[Any]) -> Sequence[Any]:
        for one in rewards:
            if isinstance(one, Judge) and one.form != "rating":
                raise ValueError(
                    "a judge rates the replies of one model: set form=rating; two models are "
                    "compared in pairs all the same"
                )
            if one.whiten or one.clip is not None:
                raise ValueError("whiten and clip change what is measured; leave them out")
        return rewards

    @property
    def rewards(self) -> tuple[RewardConfig, ...]:
        """Of which the weighted sum is measured."""
        return self.reward

    @property
    def generation(self) -> Generation:
        """How replies are made."""
        return Generation(self.max_tokens, Sampling(self.temperature))

    def check(self, subject: Subject) -> None:
        """Each first request must leave room for an answer."""
        if self.tasks:
            require_vocabulary(subject.model)
        local = LocalModel(subject.model, subject.tokenizer)
        for _, question in distinct(self.tasks, self.questions, subject.seed):
            local.check(question, self.generation)

    def measure(self, subject: Subject) -> dict[str, Any]:
        """Nothing without tasks."""
        if not self.tasks:
            return {}
        asked = distinct(self.tasks, self.questions, subject.seed)
        local = LocalModel(subject.model, subject.tokenizer, subject.seed)
        said = converse(local, subject.share(asked), self.generation)
        rated = self.rated(said, subject.tokenizer, subject.seed, subject.model.device)
        rows = [(one.answered.task, one.turn) for one in said]
        every = subject.ranks.gather(list(zip(rows, rated, strict=True)))
        (cut,) = subject.sum([sum(one.answered.cut for one in said)])
        return results([one for rank in every for one in rank]) | ended(round(cut))

    def rated(
        self, said: Sequence[Said], tokenizer: Tokenizer | None, seed: int,
        device: torch.device | str = "cpu",
    ) -> list[float]:  # fmt: skip
        """The reward of each reply. tokenizer: of the model that replied, if it is known. device:
        of reward models.
        """
        readers, rewards = _Readers(device), self.rewards
        paths = [path for one in rewards for path in _models(one)]
        known = readers.tokenizer(paths) if paths else tokenizer
        return rewards_of(said, rewards, readers.load, known, seed)

    def duel(self, ours: Sequence[Said], theirs: Sequence[Said], seed: int) -> Estimate | None:
        """The share of replies that a judge prefers to another model's; None without a judge.

        A tie counts as half. In a dialogue of several turns, each model reads its own replies.
        """
        judge = next((one for one in self.rewards if isinstance(one, Judge)), None)
        if judge is None:
            return None
        score = judge.model_copy(update={"form": "pairs", "pairs": None}).build(_no_model, seed)
        others = {(one.place, one.turn): one for one in theirs}
        pairs = [(one, others[key]) for one in ours if (key := (one.place, one.turn)) in others]
        sides = [trajectory(s, n, None) for n, pair in enumerate(pairs) for s in pair]
        won = [one for one in scores_of("judge", score, sides)[::2] if not math.isnan(one)]
        if not won:
            raise SettingError(f"reward: the judge gave no verdict: {sides[0].problem}")
        return bootstrap(won)


@dataclass(frozen=True)
class Conversed:
    """What one model replied, with the reward of each reply."""

    said: Sequence[Said]
    rewards: Sequence[float]

    def results(self) -> dict[str, Any]:
        """As the measure has them."""
        rows = [(one.answered.task, one.turn) for one in self.said]
        cut = sum(one.answered.cut for one in self.said)
        return results(list(zip(rows, self.rewards, strict=True))) | ended(cut)


def chat_suite(
    responder: Responder, model: str, measure: Chat, seed: int, path: Path | None = None
) -> Conversed:
    """The replies of a model and their rewards. model: what identifies it.

    path: a file of replies, from which known ones are read, and to which others are added.
    """
    asked = distinct(measure.tasks, measure.questions, seed)
    how = measure.generation
    file = AnswersFile(path, model, how, seed) if path else None
    said = converse(responder, asked, how, file)
    if isinstance(responder, LocalModel):
        device = responder.model.device
        return Conversed(said, measure.rated(said, responder.tokenizer, seed, device))
    return Conversed(said, measure.rated(said, None, seed))


def results(rated: Sequence[tuple[tuple[str, int], float]]) -> dict[str, Any]:
    """Estimates from pairs ((task, turn), reward).

    Raises:
        SettingError: no reply could be scored.
    """
    known = [(row, reward) for row, reward in rated if not math.isnan(reward)]
    if not known:
        raise SettingError("reward: none of the replies could be scored; see the messages above")
    turns = {turn for (_, turn), _ in known}
    groups: dict[str, list[float]] = {}
    for (task, turn), reward in known:
        groups.setdefault(task, []).append(reward)
        if len(turns) > 1:
            groups.setdefault(f"turn {turn}", []).append(reward)
    groups[EVERY] = [reward for _, reward in known]
    table = {name: asdict(bootstrap(group)) for name, group in groups.items()}
    left_out = len(rated) - len(known)
    return {"rewards": table, **({"unscored": left_out} if left_out else {})}


def _models(reward: Any) -> tuple[str, ...]:
    if isinstance(reward, ModelScore):
        return (reward.path,)
    return reward.paths if isinstance(reward, Ensemble) else ()


class _Readers:
    """Reward models, each read once."""

    def __init__(self, device: torch.device | str) -> None:
        self._device = device
        self._known: dict[str, tuple[Transformer, Tokenizer]] = {}

    def load(self, setting: str, path: str) -> Transformer:
        """As rewards load a model."""
        if path not in self._known:
            self._known[path] = load_model(path, self._device)
        return self._known[path][0]

    def tokenizer(self, paths: Sequence[str]) -> Tokenizer:
        """That of all models, whatever tokenizer the model has that replied.

        Raises:
            SettingError: they differ.
        """
        for path in paths:
            self.load("reward.path", path)
        prints = Counter(self._known[path][1].fingerprint for path in paths)
        if len(prints) > 1:
            raise SettingError(
                f"reward: {', '.join(paths)} have different tokenizers; measure them one by one"
            )
        return self._known[paths[0]][1]


def _no_model(setting: str, path: str) -> Transformer:
    raise SettingError(f"{setting}: a judge reads no model")
