"""A reward that is no finite number, or that fails, ends a run with a sentence."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from learning import build
from rolling import TOKENIZER, LowerCase, model, rollouts

from culm.config import SettingError
from culm.eval.local import LocalModel
from culm.eval.questions import answer_questions
from culm.eval.responder import Generation
from culm.objective.grpo import GRPO
from culm.rollout.buffer import Rollouts
from culm.rollout.reward.length import LengthPenalty
from culm.task.task import Question


@dataclass(frozen=True)
class Odd(LowerCase):
    """A task whose score is `value`, or whatever it gives."""

    value: Any = None

    def score(self, question: Question, reply: str) -> float:
        return self.value(reply) if callable(self.value) else self.value


def failing(reply: str) -> float:
    return {}["no such key"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (float("nan"), "is nan, not a number from 0 to 1"),
        (float("inf"), "is inf, not a number from 0 to 1"),
        (-0.5, "is -0.5, not a number from 0 to 1"),
        (None, "failed: TypeError: "),
        ("right", "failed: TypeError: "),
        (failing, "failed: KeyError: 'no such key'"),
    ],
)
def test_a_score_that_is_none(value: Any, reason: str) -> None:
    """In training and in evaluation."""
    asked = rollouts(
        build(GRPO(), model(0)), rows=4, micro_rows=4, tasks=[Odd(value=value)], group=2
    )
    wanted = rf"tasks: the score of lower case for the reply .* {reason}"
    with pytest.raises(SettingError, match=wanted):
        asked.step(0)
    task = Odd(value=value)
    with pytest.raises(SettingError, match=wanted):
        answer_questions(
            LocalModel(model(0), TOKENIZER), [(task, task.question("test", 0, 0))], Generation(4)
        )


@pytest.mark.parametrize(
    ("give", "reason"),
    [
        (lambda found: [0.0] * (len(found) - 1) + [math.inf], "length is inf for the answer"),
        (lambda found: [1e300] * len(found), r"length is 1e\+300 for the answer"),
        (lambda found: [1.0], r"length gave numbers of shape \(1,\) for 4 answers"),
        (lambda found: 1.0, r"length gave numbers of shape \(\) for 4 answers"),
        (lambda found: [None] * len(found), "length failed: TypeError"),
        (lambda found: found[99], "length failed: IndexError"),
    ],
)
def test_a_reward_that_is_none(give: Callable[[Sequence], Any], reason: str) -> None:
    penalty = LengthPenalty(longest=9, margin=3)
    asked = rollouts(build(GRPO(), model(0)), rows=4, micro_rows=4, group=2, reward=(penalty,))
    asked.scoring._scores["length"] = give
    with pytest.raises(SettingError, match=f"train.reward: {reason}"):
        asked.step(0)


def test_groups_whose_rewards_are_equal_learn_nothing_and_harm_nothing() -> None:
    asked = rollouts(build(GRPO(), model(0)), rows=4, micro_rows=4, tasks=[Odd(value=1)], group=2)
    [batch] = asked.step(0)
    assert batch.metrics["mixed_reward_groups"] == 0
    assert not batch.extra["advantages"].any()
    assert isinstance(asked, Rollouts)
