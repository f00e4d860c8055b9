"""Task generators: two splits that never meet, answers that are right, scores that never fail."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from culm.compose import compose
from culm.config import SettingError, parse
from culm.data.settings import DataConfig
from culm.task.arithmetic import Arithmetic, in_words
from culm.task.task import Question, Split, Task

TASKS: tuple[Task, ...] = parse(DataConfig, compose("tasks", "data").values).tasks
OTHERS: tuple[Task, ...] = (
    Arithmetic(name="large", largest=499),
    Arithmetic(name="large words", largest=499, operation="-", words=True),
)
NUMBERS = {in_words(number): number for number in range(1000)}

SUMS = (
    r"What is (?P<a>.+) (?P<sign>\+|-|plus|minus) (?P<b>.+)\?",
    r"(?P<a>.+) (?P<sign>\+|-|plus|minus) (?P<b>.+) = \?",
    r"(?P<sign>Add) (?P<a>.+) and (?P<b>.+)\.",
    r"(?P<sign>Subtract) (?P<b>.+) from (?P<a>.+)\.",
)
LETTERS = {
    r"Reverse: ([a-z ]+)|Write ([a-z ]+) backwards\.": lambda text: text[::-1],
    r"Sort: ([a-z ]+)|Put ([a-z ]+) in order\.": lambda text: " ".join(sorted(text.split())),
}
COUNTS = r"Count (.) in: (.+)|How many (.) are in (.+) \?"
CODE = r"What does (.+) give\?|Python: (.+)|Evaluate (.+)"


def solve(prompt: str) -> tuple[str, str] | None:
    """What is asked without its wording, and the answer, both worked out from the text alone."""
    for pattern in SUMS:
        if found := re.fullmatch(pattern, prompt):
            words = found["a"] in NUMBERS
            a, b = (NUMBERS[x] if words else int(x) for x in (found["a"], found["b"]))
            result = a + b if found["sign"] in ("+", "plus", "Add") else a - b
            return f"{min(a, b)} {max(a, b)}", in_words(result) if words else str(result)
    for pattern, work in LETTERS.items():
        if found := re.fullmatch(pattern, prompt):
            text = found[1] or found[2]
            return text, work(text)
    if found := re.fullmatch(COUNTS, prompt):
        letter, text = (part for part in found.groups() if part is not None)
        return text, str(text.split().count(letter))
    if found := re.fullmatch(CODE, prompt):
        code = next(part for part in found.groups() if part is not None)
        return code, str(eval(code, {}))
    return None


def questions(task: Task, split: Split, count: int = 600, seed: int = 0) -> list[Question]:
    return [task.question(split, index, seed) for index in range(count)]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "arithmetic", "name": "x", "smallest": 9, "largest": 9}, "no question for the"),
        ({"kind": "arithmetic", "name": "x", "largest": 1}, "no question for the"),
        ({"kind": "arithmetic", "name": "x", "smallest": 9, "largest": 3}, "is more than largest"),
        (
            {"kind": "letters", "name": "x", "operation": "sort", "shortest": 8, "longest": 6},
            "is more than longest",
        ),
    ],
)
def test_a_range_without_questions_is_refused(settings, words):
    with pytest.raises(SettingError, match=words):
        parse(DataConfig, {"tasks": [settings]}).tasks[0].question("test", 0, 0)


def test_two_tasks_need_two_names():
    task = {"kind": "arithmetic", "name": "sums"}
    with pytest.raises(SettingError, match="two of them have the name 'sums'"):
        parse(DataConfig, {"tasks": [task, task]})


each_task = pytest.mark.parametrize("task", [*TASKS, *OTHERS], ids=lambda task: task.name)


@each_task
def test_answers_are_right(task: Task) -> None:
    for question in questions(task, "train"):
        solved = solve(question.prompt)
        if solved is None:
            assert task.name == "identity"
        else:
            assert solved[1] == question.answer


def test_train_and_test_never_meet() -> None:
    """Whatever seed, wording, order of operands, operation or task."""
    for names in (
        ["addition", "subtraction", "number words"],
        ["reverse", "sort", "count"], ["expression"], ["identity"],
    ):  # fmt: skip
        seen: dict[Split, set[str]] = {"train": set(), "test": set()}
        for split, keys in seen.items():
            for task in (task for task in TASKS if task.name in names):
                for seed in (0, 1):
                    for question in questions(task, split, 800, seed):
                        keys.add((solve(question.prompt) or (question.prompt,))[0])
        assert len(seen["test"]) > 3
        assert len(seen["train"]) > len(seen["test"])
        assert not seen["train"] & seen["test"], names


@each_task
def test_questions_are_a_pure_function(task: Task) -> None:
    assert questions(task, "train", 20) == questions(task, "train", 20)
    assert questions(task, "train", 20) != questions(task, "train", 20, seed=1)


@each_task
def test_the_answer_scores_one_and_others_nothing(task: Task) -> None:
    for question in questions(task, "test", 100):
        assert task.score(question, question.answer) == 1
        assert task.score(question, f" {question.answer}\n") == 1
        assert task.score(question, question.answer + "x") == 0
        assert task.score(question, "") == 0


@given(reply=st.text(), index=st.integers(0, 50))
def test_scores_never_raise(reply: str, index: int) -> None:
    for task in TASKS:
        assert 0 <= task.score(task.question("test", index, 0), reply) <= 1
