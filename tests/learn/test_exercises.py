"""Every exercise: its own stub fails, the reference and the answer pass, known mistakes fail."""

import inspect
from collections import Counter
from importlib import import_module
from itertools import chain
from pkgutil import iter_modules

import numpy as np
import pytest
import torch

import culm.learn.checks
from culm.config import SettingError
from culm.learn.compare import difference
from culm.learn.course import lessons
from culm.learn.exercise import Exercise, Mistake, find, judge

TOPICS = [module.name for module in iter_modules(culm.learn.checks.__path__)]
EXERCISES = [
    one for topic in TOPICS for one in import_module(f"culm.learn.checks.{topic}").EXERCISES
]
MISTAKES = [
    pytest.param(one, mistake, id=f"{one.name}-{number}")
    for one in EXERCISES
    for number, mistake in enumerate(one.mistakes)
]
every = pytest.mark.parametrize("one", EXERCISES, ids=lambda one: one.name)


@every
def test_reference_and_answer_are_right(one: Exercise) -> None:
    assert judge(one, one.reference).state == "right"
    assert str(judge(one, one.solution)) == f"{one.name}: right"


@every
def test_what_is_not_written_is_not_right(one: Exercise) -> None:
    def stub(*given: object) -> None:
        raise NotImplementedError

    assert judge(one, stub).state == "unfinished"
    assert judge(one, lambda *given: None).state == "unfinished"
    assert judge(one, lambda *given: "").state == "wrong"


@every
def test_it_has_a_task_a_mistake_and_inputs_that_do_not_change(one: Exercise) -> None:
    assert one.task.endswith(".")
    assert one.mistakes, "an exercise without a mistake has no test that can fail"
    assert all(mistake.hint.endswith(".") for mistake in one.mistakes)
    for first, second in zip(one.inputs(), one.inputs(), strict=True):
        for a, b in zip(first, second, strict=True):
            assert callable(a) or difference(a, b, 0.0) is None


def test_keys_in_another_order_are_right_and_a_missing_one_is_named() -> None:
    assert difference({"b": 1, "a": 2}, {"a": 2, "b": 1}, 0.0) is None
    assert difference({"a": 2}, {"a": 2, "b": 1}, 0.0) == "it has 'a', and 'a', 'b' are expected"


@pytest.mark.parametrize(("one", "mistake"), MISTAKES)
def test_a_mistake_gets_its_hint(one: Exercise, mistake: Mistake) -> None:
    found = judge(one, mistake.function)
    assert found.state == "wrong"
    assert found.words.endswith(mistake.hint) or "raises" in found.words


def test_names_are_unique_and_each_stands_in_one_lesson() -> None:
    names = Counter(one.name for one in EXERCISES)
    assert set(names.values()) == {1}
    written = Counter(name for lesson in lessons() for name in lesson.exercises)
    assert written == names
    topics = [{name.split(".")[0] for name in lesson.exercises} for lesson in lessons()]
    assert all(lesson.topic in some for lesson, some in zip(lessons(), topics, strict=True))
    assert max(Counter(chain.from_iterable(topics)).values()) == 1  # no topic is in two lessons


def test_the_parameters_of_a_lesson_are_those_of_the_reference() -> None:
    for one in EXERCISES:
        signatures = [inspect.signature(f) for f in (one.reference, one.solution)]
        assert len({len(signature.parameters) for signature in signatures}) == 1, one.name


def test_each_part_has_at_least_seven_exercises_and_the_last_two_at_least_three() -> None:
    counts = Counter(lesson.part for lesson in lessons() for _ in lesson.exercises)
    assert min(counts.pop(last) for last in ("11", "12")) >= 3
    assert min(counts.values()) >= 7, counts


def test_an_unknown_exercise_is_answered_with_the_near_one() -> None:
    with pytest.raises(SettingError, match=r"attention\.scores"):
        find("attention.score")
    with pytest.raises(SettingError, match="no topic 'nothing'"):
        find("nothing.at_all")


def test_differences_are_said_in_words() -> None:
    three, four = torch.zeros(3), torch.zeros(2, 2)
    assert difference(three, four, 0) == "its shape is (3,), and (2, 2) is expected"
    one = four.clone()
    one[1, 0] = 2.5
    assert difference(one, four, 1e-5) == (
        "1 of 4 values differ, the first at [1, 0]: 2.5, and 0 is expected"
    )
    assert difference([1], four, 0) == "it gives [1], and a tensor is expected"
    assert difference(four.numpy(), four, 0) is None
    assert difference(four, four > 0, 0) == "it gives fractions, and True and False are expected"
    assert difference(four, four.long(), 0) == "it gives fractions, and integers are expected"
    assert difference(four, four.double(), 0) is None
    assert difference(torch.tensor([float("nan")]), torch.tensor([float("nan")]), 0) is None
    assert difference(float("inf"), 1.0, 0.1) == "it gives inf, and 1 is expected"
    assert difference(True, 1, 0) == "it gives True, and a number is expected"
    assert difference(1, True, 0) == "it gives 1, and True is expected"
    assert difference(np.float64(2), 2.0, 0) is None
    assert difference(torch.tensor(2), 2, 0) is None
    assert difference([1, 2], (1, 2), 0) is None
    assert difference([1, 3], [1, 2], 0) == "in place 1 it gives 3, and 2 is expected"
    assert difference([1], [1, 2], 0) == "it gives 1 values ([1]), and 2 ([1, 2]) are expected"
    assert difference({"a": 1}, {"a": 2}, 0) == "under 'a' it gives 1, and 2 is expected"
    assert difference("ab", b"ab", 0) == "it gives 'ab', and b'ab' is expected"


def test_the_words_name_the_input_and_the_error() -> None:
    def broken(q, k):
        return q @ k

    found = judge(find("attention.scores"), broken)
    assert found.words.startswith("it raises RuntimeError: ")
    assert found.words.endswith("q=a tensor of shape (5, 4), k=a tensor of shape (5, 4).")


def test_a_function_cannot_change_the_inputs_of_the_check() -> None:
    def spoils(scores):
        right = scores.softmax(-1)
        scores.zero_()
        return right

    assert judge(find("attention.softmax"), spoils).state == "right"
