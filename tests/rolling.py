"""A task that letters solve and rollouts of it on a tiny model: learning from rewards."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from learning import refuse

from culm.model.attention.gqa import GQA
from culm.model.transformer import Transformer, TransformerConfig
from culm.objective.objective import Objective
from culm.parallel.ranks import Ranks
from culm.rollout.buffer import Rollouts
from culm.rollout.environment import TaskEnvironment
from culm.rollout.settings import RolloutConfig
from culm.task.task import Question, Split
from culm.tokenizer.bytes import Bytes

TOKENIZER = Bytes(specials=True).build()


@dataclass(frozen=True)
class LowerCase:
    """Asks for letters: the share of lower-case ones among six is the score."""

    name: str = "lower case"

    def question(self, split: Split, index: int, seed: int) -> Question:
        return Question(f"{(index + seed) % 7}", "abcdef")

    def score(self, question: Question, reply: str) -> float:
        return sum("a" <= character <= "z" for character in reply[:6]) / 6


def model(seed: int, context: int = 32) -> Transformer:
    attention = GQA(heads=2, qk_norm="head")
    config = TransformerConfig(
        vocabulary=TOKENIZER.vocabulary, width=32, layers=1, context=context, attention=(attention,)
    )
    return config.build(seed)


def rollouts(
    objective: Objective, rows: int = 64, micro_rows: int = 64, seed: int = 0,
    ranks: Ranks = Ranks(), tasks: Sequence = (LowerCase(),), **config: Any,
) -> Rollouts:  # fmt: skip
    return Rollouts(
        objective, TOKENIZER, [TaskEnvironment(task) for task in tasks], RolloutConfig(**config),
        refuse, batch_size=rows, micro_batch_size=micro_rows, seed=seed, ranks=ranks,
    )  # fmt: skip
