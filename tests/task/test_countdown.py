"""Countdown: questions have a solution, any other right one counts, and nothing else does."""

import re
from itertools import permutations

import pytest

from culm.config import SettingError, parse
from culm.task.countdown import Countdown, evaluated

TASK = Countdown()


def test_questions_have_solutions_of_their_numbers() -> None:
    for index in range(300):
        asked = TASK.question("train", index, 0)
        value, numbers = re.fullmatch(r"Make (\d+) from ([\d, ]+)\.", asked.prompt).groups()
        assert eval(asked.answer) == int(value)
        assert sorted(map(int, re.findall(r"\d+", asked.answer))) == sorted(
            map(int, numbers.split(", "))
        )
        assert TASK.score(asked, asked.answer) == 1
        assert asked == TASK.question("train", index, 0)


def test_splits_share_no_numbers_with_the_same_value() -> None:
    task = Countdown(numbers=2, largest=6)
    train, test = (
        {evaluated_of(task.question(split, index, 0)) for index in range(300)}
        for split in ("train", "test")
    )
    assert test
    assert not train & test


def evaluated_of(question):
    value, numbers = evaluated(question.answer)
    return value, tuple(numbers)


def test_another_order_is_right_and_other_numbers_are_not() -> None:
    asked = TASK.question("train", 0, 0).__class__("Make 9 from 2, 3, 4.", "(2+3)+4")
    for a, b, c in permutations("234"):
        assert TASK.score(asked, f" {a} + ({b}+{c}) ") == 1
    for wrong in ("2+3+3+1", "9", "3*3", "2+3", "(2+3+4", "2+3+4=9", "5+4", "", "2**3+4-3", "-2"):
        assert TASK.score(asked, wrong) == 0


ODD = ["2+3+4 #", "2_0", "0x9", "1if", "'\\d'", "(x:=9)", "٢+٣+٤", "True+8", "2.0+3+4", "2+\n3"]


@pytest.mark.parametrize("reply", [*ODD, "(" * 5000, "9" * 5000, "__import__('os')", "\0", "10**9"])
@pytest.mark.filterwarnings("error")
def test_no_reply_fails(reply: str) -> None:
    assert evaluated(reply) is None
    assert TASK.score(TASK.question("test", 0, 0), reply) == 0


@pytest.mark.parametrize(
    "settings",
    [{"numbers": 6, "signs": "*", "largest": 99}, {"numbers": 5, "signs": "*", "largest": 99}],
)
def test_a_task_without_expressions_is_refused_and_not_searched_for_ever(settings) -> None:
    with pytest.raises(SettingError, match=r"t\.numbers: hardly any expression of \d numbers"):
        parse(Countdown, settings, "t")


def test_narrow_tasks_have_questions() -> None:
    for settings in ({"numbers": 2, "largest": 4, "signs": "-"}, {"numbers": 6, "largest": 9}):
        assert Countdown(**settings).question("train", 0, 0).answer
