"""Tasks that answer replies: what they say, what fine-tuning shows, and how they are measured."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from suites import local

from culm.data.tasks import TaskSource
from culm.engine.sampling import Sampling
from culm.eval.dialogue import converse
from culm.eval.local import LocalModel
from culm.eval.measure.measure import Subject
from culm.eval.measure.scores import Scores
from culm.eval.questions import answer_questions, distinct
from culm.eval.responder import Generation, Reply
from culm.eval.suite import answer_suite
from culm.rollout.environment import TaskEnvironment
from culm.task.calculator import Calculator
from culm.task.guess import Guess
from culm.task.interactive import dialogue, followed
from culm.text.reply import NoRoom

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
    arabic = "".join(chr(0x660 + int(digit)) for digit in str(secret))
    for said in (f"0{secret}", f" {secret}\n", arabic):  # the number, and so not said to be lower
        assert task.follow(question, [said]) is None
        assert task.score(question, said) == 1
    for said in (str(secret + 1), f"-{secret}", f"{secret}.0", "", f"{'0' * 30}{secret}"):
        assert task.score(question, said) == 0


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
    assert caller.asked == [8, 8]  # samples that are the same so far are asked for together
    sums, games = found[:4], found[4:]
    assert all(one.scores == (1.0,) * samples and one.tokens == 6 * samples for one in sums)
    assert all(one.replies == ("This is no number.",) * samples for one in games)
    assert len({one.question.answer for one in games}) == 4  # all with the same prompt


class Noted:
    """Notes what a model is asked, and what it says."""

    def __init__(self, model: LocalModel) -> None:
        self.model, self.said = model, []

    def replies(self, questions, how: Generation) -> list[list[Reply]]:
        found = self.model.replies(questions, how)
        self.said += [one.text for replies in found for one in replies]
        return found

    def likelihoods(self, options):
        return []


def test_samples_and_games_have_random_numbers_of_their_own() -> None:
    """All games begin with the same prompt, and all wrong guesses are followed by the same."""
    how = Generation(4, Sampling(temperature=1.0), samples=5)
    noted = Noted(local(context=256))
    games = distinct([Guess(guesses=3)], 4, 0)
    found = answer_questions(noted, games, how)
    assert len(noted.said) == 4 * 5 * 3
    assert len(set(noted.said)) == len(noted.said)
    assert all(len(set(one.replies)) == 5 for one in found)
    [alone] = answer_questions(local(context=256), games[2:3], how)
    assert alone == found[2]


def test_dialogues_that_the_context_ends_are_scored_and_counted(tmp_path) -> None:
    """By a suite, from its file of answers, and by a run."""
    model, path = local(context=72), tmp_path / "answers.jsonl"
    answered = answer_questions(model, distinct([Guess()], 3, 0), Generation(8, samples=2))
    assert [one.cut for one in answered] == [2, 2, 2]
    assert all(one.scores == (0.0, 0.0) for one in answered)
    measure = Scores(tasks=[Guess()], questions=3, max_tokens=8)
    for _ in range(2):
        found = answer_suite(model, "m", measure, 0, path).results()
        assert found["dialogues_ended_by_context"] == 3
        assert found["scores"]["guess"]["items"] == 3
    assert measure.measure(Subject(model.model, model.tokenizer, seed=0)) == found
    with pytest.raises(NoRoom, match="leaves no room for an answer in the model's context of 16"):
        answer_questions(local(context=16), distinct([Guess()], 1, 0), Generation(8))


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
