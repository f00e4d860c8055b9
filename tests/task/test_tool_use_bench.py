"""`bench/tool_use.py`: test questions are new, can be answered with tools, and the task scores."""

import json
import re
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "bench"))
import learning_rl
from tool_dialogues import TESTS, tool_task, write_dialogues
from tool_use import NAMES, TINY, answers, gains, measured, over_seeds, plain, tools, tuning

from culm.eval.questions import answer_questions
from culm.eval.responder import Generation, Reply
from culm.run.train import Result
from culm.task.prompts import Prompts
from culm.task.tool_questions import ToolQuestions

pytest.importorskip("jsonschema")
FILES = ("train", "practice", *TESTS)


@pytest.fixture(scope="module")
def written(tmp_path_factory, shared):
    """The folder of a seed, and its records by file."""
    data = shared("tool_use/Chinook_Sqlite.sqlite").parent
    folder = tmp_path_factory.mktemp("questions")
    assert write_dialogues(data, folder, 0, 300, 20) == 300
    return folder, {name: _records(folder, name) for name in FILES}


def _records(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def _table(record):
    """The table that a question about rows reads, with its database."""
    found = re.search('SELECT \\w+ FROM (\\w+) WHERE .*"database": "(\\w+)"', record["replies"][0])
    return found and found.groups()


def test_a_seed_gives_the_same_questions(written, tmp_path, shared):
    data = shared("tool_use/Chinook_Sqlite.sqlite").parent
    folder, records = written
    for seed, same in ((0, True), (1, False)):
        write_dialogues(data, tmp_path / str(seed), seed, 300, 20)
        for name in FILES:
            again = (tmp_path / str(seed) / f"{name}.jsonl").read_bytes()
            assert (again == (folder / f"{name}.jsonl").read_bytes()) == same
    assert [len(records[name]) for name in TESTS] == [20] * 4


def test_no_training_question_names_what_is_tested(written):
    _, records = written
    training = records["train"] + records["practice"]
    said = "\n".join(text for one in training for text in (one["question"], *one["replies"]))
    quoted = {*re.findall("'([^'\n]*)'", said), *(one["answer"] for one in training)}
    for kind in ("rows", "joins"):
        assert not quoted & {re.search("'(.*)'", one["question"])[1] for one in records[kind]}
    for one in records["documents"]:  # asked by the name of a function, or by its meaning
        assert re.search("'(.*)'", one["question"])[1] not in quoted
        assert one["replies"][0] not in said
    train, practice = (
        {re.search("'(.*)'", one["question"])[1] for one in records[name]} for name in FILES[:2]
    )
    assert not train & practice
    tables = {_table(one) for one in records["unseen"]}
    assert None not in tables
    assert tables
    assert not tables & {_table(one) for one in training}


class Reciting:
    """Says the replies that fine-tuning shows."""

    def __init__(self, records):
        self._replies = {one["question"]: one["replies"] for one in records}

    def replies(self, questions, how):
        return [[Reply(self._reply(one), 1)] for one in questions]

    def likelihoods(self, options):
        return []

    def _reply(self, question):
        asked = next(one["content"] for one in question.messages if one["role"] == "user")
        turn = sum(one["role"] == "assistant" for one in question.messages)
        return self._replies[asked][turn]


def test_the_calls_are_right_with_tools_and_nothing_without(written):
    folder, records = written
    for kind in TESTS:
        task = tool_task(folder, f"{kind}.jsonl", "test")
        given = [(task, question) for question in task.asked("test")]
        answered = answer_questions(Reciting(records[kind]), given, Generation())
        assert [one.scores for one in answered] == [(1.0,)] * 20
        bare = Prompts(**plain(folder, kind, "test"))
        given = [(bare, question) for question in bare.asked("test")]
        answered = answer_questions(Reciting(records[kind]), given, Generation())
        assert not any(one.score for one in answered)


def test_a_trial_trains_asks_and_scores(tmp_path, shared, capsys):
    data = shared("tool_use/Chinook_Sqlite.sqlite").parent
    found = measured(data, tmp_path, 0, TINY)
    rows = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[1] for line in rows] == list(found)
    for run, with_tools in NAMES:
        answered = answers(tmp_path / run, tmp_path / "questions", with_tools)
        assert len(answered) == 2 * len(TESTS)
        for one in answered:
            file = tmp_path / "questions", one.task, "test"
            task = ToolQuestions(**tools(*file)) if with_tools else Prompts(**plain(*file))
            assert one.scores == (task.score(one.question, one.reply),)
    assert len(list(gains(0, found))) == 2
    assert over_seeds("a", [0.5, 0.5]) == "| a | 50.0 | +- 0.0 |"


def test_a_run_that_was_stopped_is_not_measured(tmp_path, monkeypatch):
    stopped = Result(tmp_path, finished=False, steps=1, results={})
    monkeypatch.setattr(learning_rl, "train", lambda config: stopped)
    with pytest.raises(SystemExit, match="was stopped"):
        learning_rl.trained(tuning(tmp_path, 0, plain(tmp_path, "train"), 40, TINY, 64))
