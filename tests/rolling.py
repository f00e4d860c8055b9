"""A task that letters solve and rollouts of it on a tiny model: learning from rewards."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
from learning import refuse

from culm.model.attention.gqa import GQA
from culm.model.transformer import Transformer, TransformerConfig
from culm.objective.objective import Objective
from culm.parallel.ranks import Ranks
from culm.rollout.buffer import Rollouts
from culm.rollout.completer import Export
from culm.rollout.environment import TaskEnvironment
from culm.rollout.settings import RolloutConfig
from culm.run.train_settings import TrainConfig
from culm.task.task import Question, Split
from culm.tokenizer.bytes import Bytes

T = TypeVar("T")
TOKENIZER = Bytes(specials=True).build()


@dataclass(frozen=True)
class LowerCase:
    """Asks for letters: the share of lower-case ones among six is the score."""

    name: str = "lower case"

    def question(self, split: Split, index: int, seed: int) -> Question:
        return Question(f"{(index + seed) % 7}", "abcdef")

    def score(self, question: Question, reply: str) -> float:
        return sum("a" <= character <= "z" for character in reply[:6]) / 6


class Rare(LowerCase):
    """Only a question in three can be answered, so many groups earn nothing."""

    def score(self, question: Question, reply: str) -> float:
        return super().score(question, reply) if int(question.prompt) % 3 == 0 else 0.0


def model(seed: int, context: int = 32) -> Transformer:
    attention = GQA(heads=2, qk_norm="head")
    config = TransformerConfig(
        vocabulary=TOKENIZER.vocabulary, width=32, layers=1, context=context, attention=(attention,)
    )
    return config.build(seed)


def rollouts(
    objective: Objective, rows: int = 64, micro_rows: int = 64, seed: int = 0,
    ranks: Ranks = Ranks(), tasks: Sequence = (LowerCase(),), export: Export | None = None,
    **config: Any,
) -> Rollouts:  # fmt: skip
    given = {"steps": 1, "objective": "grpo", "reward": config.pop("reward", None)}
    rewards = TrainConfig.model_validate(given).rewards
    return Rollouts(
        objective, TOKENIZER, [TaskEnvironment(task) for task in tasks], RolloutConfig(**config),
        refuse, rewards=rewards, batch_size=rows, micro_batch_size=micro_rows, seed=seed,
        ranks=ranks, export=export,
    )  # fmt: skip


def on_two_ranks(monkeypatch: pytest.MonkeyPatch, play: Callable[[Ranks], T]) -> list[T]:
    """What each of two ranks gives, as threads that hear each other.

    One that waits for the other for longer than a minute raises BrokenBarrierError.
    """
    barrier, values = threading.Barrier(2, timeout=60), [None, None]

    def gather(self: Ranks, value: Any) -> list[Any]:
        values[self.rank] = value
        barrier.wait()
        both = list(values)
        barrier.wait()
        return both

    def add(self: Ranks, own: list[float], device: Any = "cpu") -> list[float]:
        return [sum(each) for each in zip(*self.gather(own), strict=True)]

    for name in ("gather", "everyone"):
        monkeypatch.setattr(Ranks, name, gather)
    monkeypatch.setattr(Ranks, "sum", add)
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda rank: play(Ranks(rank, 2)), range(2)))
