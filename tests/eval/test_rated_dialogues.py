"""Replies of a model in dialogues: asked turn by turn, rated, and compared with another model's."""

import json
import math
import re
from pathlib import Path

import pytest
from judging import Stub, parts
from judging import stub as stub
from suites import local, write

from culm.compose import compose
from culm.config import SettingError, parse
from culm.convert import native
from culm.convert.export import export
from culm.eval.dialogue import converse, trajectory
from culm.eval.measure.chat import Chat, Conversed, chat_suite, results
from culm.eval.measure.measure import Subject
from culm.eval.questions import distinct
from culm.eval.responder import Generation, Reply
from culm.eval.settings import EvalConfig
from culm.rollout.environment import QuestionEpisode
from culm.task.dialogues import Dialogues
from culm.task.task import graded
from culm.verbs.evaluate import Options, show_evaluation
from culm.verbs.evaluate_chat import chat_gains, with_judge

RECORDS = [
    {"question_id": 1, "category": "writing", "turns": ["Say fox.", "And again."]},
    {"question_id": 2, "category": "math", "turns": ["What is 2 + 2?"]},
    {"prompt": "Name a river."},
]


class Echo:
    """Replies with the number of messages that it reads, in so many words."""

    def __init__(self, word: str = "yes") -> None:
        self.word, self.asked = word, 0

    def replies(self, questions, how: Generation) -> list[list[Reply]]:
        self.asked += len(questions)
        texts = [" ".join([self.word] * len(one.messages)) for one in questions]
        return [[Reply(text, 3)] for text in texts]

    def likelihoods(self, options) -> list:
        return []

    def rolling(self, texts) -> list:
        return []


@pytest.fixture
def tasks(tmp_path) -> list[dict]:
    path = write(tmp_path, "mt_bench.jsonl", RECORDS)
    return [{"kind": "dialogues", "name": "mt_bench", "path": str(path)}]


def chat(tasks: list[dict], reward: dict) -> Chat:
    return parse(Chat, {"tasks": tasks, "reward": reward, "max_tokens": 8}, "measures.chat")


def function(folder: Path, body: str = "return len(completion)") -> dict:
    path = folder / "reward.py"
    path.write_text(f"def score(prompt, completion, **fields):\n    {body}\n")
    return {"kind": "function", "path": str(path), "name": "score"}


def judge(stub: Stub) -> dict:
    return {"kind": "judge", "form": "rating", "url": stub.url, "model": "judge"}


def rating(prompt: str) -> str:
    answer = prompt.split("<answer>\n")[1].split("\n</")[0]
    return f"[[{len(answer.split())}]]"


def test_a_further_turn_follows_the_own_reply(tasks) -> None:
    asked = distinct(parse(Chat, {"tasks": tasks, "reward": "format"} | FORMAT).tasks, None, 1)
    said = converse(Echo(), asked, Generation())
    assert [one.turn for one in said] == [1, 1, 1, 2]
    last = said[-1].answered
    assert last.question.messages == [
        {"role": "user", "content": "Say fox."}, {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "And again."},
    ]  # fmt: skip
    assert last.reply == "yes yes yes"
    one = trajectory(said[-1], 0, None)
    assert [m["role"] for m in one.prompt] == ["user", "assistant", "user"]
    assert [m["content"] for m in one.completion] == ["yes yes yes"]


FORMAT = {"reward": {"kind": "format", "pattern": ".*"}}


def test_a_judge_rates_each_turn_and_sees_what_was_said(stub: Stub, tasks, tmp_path) -> None:
    stub.reply = rating
    found = chat_suite(Echo(), "m", chat(tasks, judge(stub)), 1).results()["rewards"]
    assert {name: (one["value"], one["items"]) for name, one in found.items()} == {
        "mt_bench": (pytest.approx(0.15), 4), "turn 1": (pytest.approx(0.1), 3),
        "turn 2": (pytest.approx(0.3), 1), "all": (pytest.approx(0.15), 4),
    }  # fmt: skip
    assert found["all"]["low"] <= found["all"]["value"] <= found["all"]["high"]
    asked = [body["messages"][0]["content"] for body in stub.bodies]
    assert any("user: Say fox.\n\nassistant: yes\n\nuser: And again." in one for one in asked)
    assert all(body["temperature"] == 0 for body in stub.bodies)


def test_what_a_judge_cannot_rate_is_left_out_and_counted(stub: Stub, tasks) -> None:
    stub.reply = lambda prompt: "no idea" if "fox" in prompt else "[[10]]"
    found = chat_suite(Echo(), "m", chat(tasks, judge(stub)), 1).results()
    assert (found["rewards"]["all"]["value"], found["unscored"]) == (1.0, 2)
    stub.reply = lambda prompt: "no idea"
    with pytest.raises(SettingError, match="none of the replies could be scored"):
        chat_suite(Echo(), "m", chat(tasks, judge(stub)), 1).results()


def test_two_models_are_compared_in_pairs_in_both_orders(stub: Stub, tasks) -> None:
    measure = chat(tasks, judge(stub))
    asked = distinct(measure.tasks, None, 1)
    ours, theirs = (converse(Echo(word), asked, Generation()) for word in ("certainly", "yes"))
    found = measure.duel(ours, theirs, 1)  # the stub prefers the longer one
    assert found is not None
    assert (found.value, found.items) == (1.0, 4)
    assert len(stub.bodies) == 8
    pairs = [parts(body["messages"][0]["content"]) for body in stub.bodies]
    assert sorted(pairs) == sorted((b, a) for a, b in pairs)
    stub.reply = lambda prompt: "[[A]]"  # whichever comes first
    assert measure.duel(ours, theirs, 1).value == 0.5
    assert measure.duel(ours, ours, 1).value == 0.5  # equal replies are not even judged
    stub.reply = lambda prompt: 400
    with pytest.raises(SettingError, match="the judge gave no verdict"):
        measure.duel(ours, theirs, 1)


def test_gains_are_paired(tasks, tmp_path) -> None:
    measure = chat(tasks, function(tmp_path))
    asked = distinct(measure.tasks, None, 1)
    ours, theirs = (
        Conversed(said, measure.rated(said, None, 1))
        for said in (converse(Echo(word), asked, Generation()) for word in ("ab", "a"))
    )
    found = chat_gains("chat", measure, ours, theirs, 1)
    assert found.keys() == {"chat.reward"}
    assert found["chat.reward"]["value"] == (1 + 1 + 1 + 3) / 4


def test_a_function_gets_the_fields_of_its_record(tasks, tmp_path) -> None:
    reward = function(tmp_path, "return None if fields.get('category') == 'math' else 2.0")
    found = chat_suite(Echo(), "m", chat(tasks, reward), 1).results()
    assert (found["rewards"]["all"]["value"], found["unscored"]) == (2.0, 1)


def test_replies_are_kept_in_a_file(tasks, tmp_path) -> None:
    measure, path = chat(tasks, function(tmp_path)), tmp_path / "out.jsonl"
    first, second = Echo(), Echo()
    found = chat_suite(first, "m", measure, 1, path).results()
    assert chat_suite(second, "m", measure, 1, path).results() == found
    assert (first.asked, second.asked) == (4, 0)


def test_a_run_measures_what_a_suite_does(tasks, tmp_path) -> None:
    responder, measure = local(context=128), chat(tasks, function(tmp_path))
    found = chat_suite(responder, "m", measure, 0).results()
    subject = Subject(responder.model, responder.tokenizer, seed=0)
    measure.check(subject)
    assert measure.measure(subject) == found


def test_a_dialogue_ends_where_the_context_does(tasks, tmp_path) -> None:
    responder, measure = local(context=24), chat(tasks, function(tmp_path))
    measure = measure.model_copy(update={"max_tokens": 16})
    said = converse(responder, distinct(measure.tasks, None, 1), Generation(16))
    assert [one.turn for one in said] == [1, 1, 1]
    assert [one.answered.cut for one in said] == [
        len(one.answered.question.further) for one in said
    ]
    path = tmp_path / "out.jsonl"
    for _ in range(2):
        found = chat_suite(responder, "m", measure, 0, path).results()
        assert found["dialogues_ended_by_context"] == 1
    assert measure.measure(Subject(responder.model, responder.tokenizer, seed=0)) == found


def test_a_reward_model_rates_with_its_own_tokenizer(tasks, tmp_path) -> None:
    """Whatever replied: the tokens that it reads are of its own tokenizer."""
    reader = local(seed=5, context=128)
    config = reader.model.config.model_copy(update={"head": "scalar"})
    native.save(config.build(3).eval(), reader.tokenizer, tmp_path / "reward")
    measure = chat(tasks, {"kind": "model", "path": str(tmp_path / "reward")})
    said = converse(Echo(), distinct(measure.tasks, None, 1), Generation())
    found = measure.rated(said, None, 1)
    assert len(found) == 4
    assert all(map(math.isfinite, found))
    assert found == measure.rated(said, reader.tokenizer, 1)
    export(tmp_path / "reward", tmp_path / "hf", "float32")  # for transformers
    again = chat(tasks, {"kind": "model", "path": str(tmp_path / "hf")})
    assert again.rated(said, None, 1) == pytest.approx(found, abs=1e-5)


@pytest.mark.parametrize(("reward", "said"), [
    ({"kind": "judge", "form": "rating", "model": "m"}, r"measures\.chat\.reward.*url"),
    ({"kind": "judge", "model": "m", "url": "http://x/v1"}, "set form=rating"),
    ({**FORMAT["reward"], "whiten": True}, "whiten and clip change"),
    ({"kind": "length", "max_tokens": 3}, r"measures\.chat\.reward"),
])  # fmt: skip
def test_rewards_that_cannot_rate_are_refused(tasks, reward, said) -> None:
    with pytest.raises(SettingError, match=said):
        chat(tasks, reward)


def test_the_suite_says_that_it_needs_a_judge(stub: Stub) -> None:
    values = compose("chat", "eval").values
    with pytest.raises(SettingError, match=r"--judge http://localhost:8000/v1#MODEL"):
        with_judge(values, None)
    found = parse(EvalConfig, with_judge(values, f"{stub.url}#gpt"), "eval").first(Chat)
    assert (found.rewards[0].url, found.rewards[0].model) == (stub.url, "gpt")
    with pytest.raises(SettingError, match="no replies to judge"):
        with_judge(compose("tasks", "eval").values, "http://x/v1#gpt")
    assert with_judge(compose("tasks", "eval").values, None)["measures"].keys() == {
        "held_out", "scores",
    }  # fmt: skip


def test_the_command_prints_ratings_and_preferences(stub: Stub, tasks, tmp_path, capsys) -> None:
    stub.reply = lambda prompt: "[[5]]" if "Rate an answer" in prompt else "[[tie]]"
    for seed in (2, 3):
        native.save(local(seed, 128).model, local(seed, 128).tokenizer, tmp_path / f"m{seed}")
    options = Options(
        suite="chat", data=str(tmp_path), judge=f"{stub.url}#judge", questions=2, device="cpu",
        against=str(tmp_path / "m3"), output=str(tmp_path / "out.jsonl"),
    )  # fmt: skip
    show_evaluation(str(tmp_path / "m2"), options)
    shown = capsys.readouterr().out
    assert "all: reward 0.5 (0.5 to 0.5)" in shown
    assert re.search(r"more reward than the other model: 0 \(0 to 0\)", shown)
    assert "preferred to the other model: 50 (50 to 50) %" in shown
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert all(line["scores"] == [] for line in lines)


def test_a_dialogue_has_no_score_of_its_own(tasks) -> None:
    task = Dialogues(**{key: value for key, value in tasks[0].items() if key != "kind"})
    question = task.asked("test")[0]
    with pytest.raises(SettingError, match="give it to a measure of the kind chat"):
        graded(task, question, "yes")
    episode = QuestionEpisode(task, question)
    assert episode.step("yes").messages == ({"role": "user", "content": "And again."},)
    assert episode.step("yes").messages == ()


def test_mt_bench_is_read_complete(shared) -> None:
    asked = Dialogues(path=str(shared("sft/mt_bench_question.jsonl"))).asked("test")
    assert (len(asked), {len(one.further) for one in asked}) == (80, {1})


def test_estimates_are_by_task_and_turn() -> None:
    rows = [(("a", 1), 1.0), (("a", 1), 0.0), (("b", 1), math.nan)]
    found = results(rows)
    assert found["rewards"].keys() == {"a", "all"}
    assert found["unscored"] == 1
