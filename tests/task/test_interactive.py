"""Tasks that answer replies: what they say, what fine-tuning shows, and how they are measured."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from suites import local

from culm.data.tasks import TaskSource
from culm.engine.sampling import Sampling
from culm.eval.dialogue import converse
from culm.eval.questions import answer_questions, distinct
from culm.eval.responder import Generation, Reply
from culm.rollout.environment import TaskEnvironment
from culm.task.calculator import Calculator
from culm.task.guess import Guess
from culm.task.interactive import dialogue, followed

TASKS = [Calculator(), Calculator(name="once", calls=1, signs="*"), Guess(), Guess(guesses=9)]
BY_NAME = pytest.mark.parametrize("task", TASKS, ids=lambda task: repr(task))


@BY_NAME
def test_what_fine_tuning_shows_is_right(task) -> None:
    for index in range(40):
        question = task.question("train", index, 3)
        shown = task.shown(question)
        assert task.score(question, shown[-1]) == 1
        assert followed(task, question, shown) is None
        messages = dialogue(task, question)
        assert [one["role"] for one in messages] == ["user", "assistant"] * len(shown)
        assert [one["content"] for one in messages[1::2]] == list(shown)


@BY_NAME
@given(replies=st.lists(st.text(max_size=30) | st.sampled_from(["5", "calc(2*3)"]), min_size=20))
def test_every_dialogue_ends(task, replies) -> None:
    question = task.question("test", 0, 0)
    said = [followed(task, question, replies[:count]) for count in range(1, 21)]
    assert None in said
    assert all(one is None or isinstance(one, str) for one in said)
    assert task.score(question, replies[0]) in (0, 1)


def test_a_calculator_computes_and_nothing_else() -> None:
    task = Calculator()
    question = task.question("train", 0, 0)
    for reply, said in (
        ("calc(17*23)", "391"),
        (" calc( 3 - (4+5) )\n", "-6"),
        ("calc(2**9)", "This is no expression of whole numbers."),
        ("calc(__import__('os'))", "This is no expression of whole numbers."),
        ("391", None),
        ("calc(1+1) and more", None),
    ):
        assert task.follow(question, [reply]) == said
    assert task.follow(question, ["calc(1+1)"] * 3) is None


def test_a_number_is_found_by_bisection() -> None:
    task = Guess()
    assert {len(task.shown(task.question("train", n, 0))) for n in range(100)} <= set(range(1, 8))
    question = task.question("train", 0, 0)
    secret = int(question.answer)
    assert task.follow(question, [str(secret - 1)]) == "It is higher."
    assert task.follow(question, [str(secret + 1)]) == "It is lower."
    assert task.follow(question, ["²"]) == "This is no number."


class Caller:
    """Has each product computed, and says the value; of the tasks without a tool it says `no`."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def replies(self, questions, how: Generation) -> list[list[Reply]]:
        self.asked.append(len(questions))
        return [[Reply(self._reply(one), 3) for _ in range(how.samples)] for one in questions]

    def _reply(self, question) -> str:
        if question.before:
            assert [one["role"] for one in question.before] == ["user", "assistant"]
            return question.prompt
        return f"calc({question.fields['expression']})" if "expression" in question.fields else "no"

    def likelihoods(self, options):
        return []


@pytest.mark.parametrize("samples", [1, 3])
def test_an_evaluation_plays_to_the_end(samples) -> None:
    tasks = [Calculator(signs="*"), Guess(guesses=2)]
    caller = Caller()
    found = answer_questions(caller, distinct(tasks, 4, 0), Generation(samples=samples))
    assert caller.asked == [8, *[8] * samples]
    sums, games = found[:4], found[4:]
    assert all(one.scores == (1.0,) * samples and one.tokens == 6 * samples for one in sums)
    assert all(one.replies == ("This is no number.",) * samples for one in games)
    assert len({one.question.answer for one in games}) == 4  # all with the same prompt


class Random(Caller):
    """Replies to a turn that depend on what was said and on the number of the sample alone."""

    def replies(self, questions, how: Generation) -> list[list[Reply]]:
        numbers = range(how.first, how.first + how.samples)
        return [
            [Reply("calc(1+1)" if not q.before else f"{len(q.before)} {n}", 1) for n in numbers]
            for q in questions
        ]


def test_samples_that_begin_alike_go_on_differently() -> None:
    (found,) = answer_questions(Random(), distinct([Calculator()], 1, 0), Generation(samples=3))
    assert found.replies == ("2 0", "2 1", "2 2")


def test_a_sample_has_random_numbers_of_its_own() -> None:
    """The same ones, asked for alone or with others."""
    model, question = local(), Guess().question("test", 0, 0)
    how = Generation(8, Sampling(temperature=1.0), samples=3)
    (every,) = model.replies([question], how)
    assert len({one.text for one in every}) == 3
    for number, reply in enumerate(every):
        assert model.replies([question], replace(how, samples=1, first=number)) == [[reply]]


def test_dialogues_that_the_context_ends_are_counted(capsys) -> None:
    asked = distinct([Guess(guesses=9)], 2, 0)
    found = answer_questions(local(), asked, Generation(20, Sampling(temperature=1.0)))
    assert [one.scores for one in found] == [(0.0,)] * 2
    assert "2 dialogues end before the task is done with them" in capsys.readouterr().err


def test_a_rated_dialogue_is_played_to_its_end() -> None:
    """By a measure that rates each reply too."""
    said = converse(Caller(), distinct([Calculator(), Guess(guesses=2)], 1, 0), Generation())
    assert [(one.task.name, one.turn) for one in said] == [
        ("calculator", 1), ("guess", 1), ("calculator", 2), ("guess", 2),
    ]  # fmt: skip
    assert said[2].answered.reply == said[2].answered.question.answer


def test_the_order_of_the_numbers_does_not_matter_for_the_split() -> None:
    task = Calculator(smallest=1, largest=9)
    pairs = {
        split: {
            (sign, *sorted(map(int, q.fields["expression"].split(sign))))
            for n in range(200)
            if (q := task.question(split, n, 0))
            for sign in "+-*" if sign in q.fields["expression"]
        }
        for split in ("train", "test")
    }  # fmt: skip
    assert pairs["test"]
    assert not pairs["train"] & pairs["test"]


def test_rollouts_and_fine_tuning_play_it() -> None:
    task = Calculator()
    episode = TaskEnvironment(task).reset(0, 5)
    assert episode.step("calc(2*3)").messages == ({"role": "user", "content": "6"},)
    assert episode.step(episode.question.answer).messages == ()
    assert episode.score() == 1
    marks = {TaskEnvironment(Calculator(calls=n)).fingerprint(0) for n in (1, 2)}
    assert len(marks) == 2
    records = list(TaskSource([task], 6, 1, 0))
    assert [len(one["messages"]) for one in records] == [4] * 6
