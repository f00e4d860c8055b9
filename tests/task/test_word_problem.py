"""Word problems: the working follows from the story, and leads to the answer."""

import re

import pytest

from culm.task.word_problem import WordProblem

TASK = WordProblem(steps=3)
NUMBER = re.compile(r"-?\d+")


def told(story: str) -> int:
    """The answer, read from the sentences alone."""
    start, *changes, _ = story.split(". ")
    total = int(NUMBER.search(start).group())
    owner = start.split(" has ")[0]
    for sentence in changes:
        numbers = [int(number) for number in NUMBER.findall(sentence)]
        if "doubles" in sentence:
            total *= 2
        elif "bags" in sentence:
            total += numbers[0] * numbers[1]
        elif re.search(rf"loses|sells|^{owner} gives", sentence):
            total -= numbers[0]
        else:
            total += numbers[0]
        assert total >= 0
    return total


def test_the_answer_is_what_the_story_tells() -> None:
    for index in range(300):
        asked = TASK.question("train", index, 0)
        assert int(asked.answer) == told(asked.prompt)
        assert asked == TASK.question("train", index, 0)
        for line in asked.working.split(", "):
            left, right = line.split("=")
            assert eval(left) == int(right)
        assert asked.working.endswith(f"={asked.answer}")


def test_a_reply_counts_with_and_without_its_working() -> None:
    asked = TASK.question("test", 0, 0)
    assert TASK.score(asked, asked.reply) == TASK.score(asked, f" {asked.answer}\n") == 1
    for wrong in ("", asked.working, f"{asked.answer}0", f"{asked.answer}: 1", "many"):
        assert TASK.score(asked, wrong) == 0


def test_splits_share_no_sums_whoever_has_them() -> None:
    task = WordProblem(steps=1, largest=9)
    train, test = (
        {task.question(split, index, 0).working for index in range(400)}
        for split in ("train", "test")
    )
    assert test
    assert not train & test


@pytest.mark.parametrize("worked", [0.0, 1.0])
def test_a_share_of_the_replies_is_worked(worked: float) -> None:
    task = WordProblem(worked=worked)
    replies = [task.question("train", index, 0).reply for index in range(50)]
    assert [": " in reply for reply in replies] == [bool(worked)] * 50
