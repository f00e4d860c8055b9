"""Exact match: the interval, what counts as a question, and how two models are compared."""

import json
import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import yaml

from culm.compose import compose
from culm.config import parse
from culm.data.settings import DataConfig
from culm.eval.interval import wilson
from culm.eval.local import LocalModel
from culm.eval.measure.scores import Scores
from culm.eval.questions import (
    Answered,
    answer_questions,
    distinct,
    estimates_of,
    gain,
)
from culm.eval.responder import Generation
from culm.eval.settings import EvalConfig
from culm.model.attention.gqa import GQA
from culm.model.transformer import TransformerConfig
from culm.task.expression import Expression
from culm.task.identity import ABOUT, GREETINGS, OPENINGS, TAILS, Identity
from culm.task.task import Question, Split, split_of
from culm.text.language_model import LanguageModel
from culm.tokenizer.bytes import Bytes
from culm.verbs import evaluate as verb

TOKENIZER = Bytes(specials=True).build()


@pytest.mark.parametrize(
    ("right", "items", "low", "high"),
    [  # the first four from Newcombe 1998, table I
        (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718), (9, 10, 0.5958, 0.9821), (10, 10, 0.7225, 1.0),
    ],
)  # fmt: skip
def test_wilson_gives_the_published_intervals(right, items, low, high) -> None:
    score = wilson(right, items)
    assert (score.value, score.items) == (right / items, items)
    assert (score.low, score.high) == pytest.approx((low, high), abs=1e-4)


def test_intervals_contain_the_share() -> None:
    """Above all 0 and 1, where rounding puts a bound on the wrong side."""
    for items in range(1, 400):
        for right in {0, 1, items // 2, items - 1, items}:
            score = wilson(right, items)
            assert 0 <= score.low <= score.value <= score.high <= 1, (right, items)


def test_questions_are_asked_once_each() -> None:
    every = {
        opening + asked + tail
        for opening in OPENINGS for asks in ABOUT.values() for asked in asks for tail in TAILS
    }  # fmt: skip
    supply = {prompt for prompt in every.union(GREETINGS) if split_of(prompt) == "test"}
    assert {question.prompt for _, question in distinct([Identity()], 100, seed=1)} == supply
    assert len(distinct([Identity()], 100, seed=1)) == len(supply) == 45
    found = distinct([Expression()], 200, seed=1)
    assert len({question.prompt for _, question in found}) == len(found) == 200
    assert distinct([Expression()], 20, seed=1) == found[:20]
    both = distinct([Expression(), Identity()], 200, seed=1)
    assert both == [*found, *distinct([Identity()], 200, seed=1)]


@dataclass
class Vowels:
    """Scores by the share of a reply that is no vowel; there are three questions."""

    name: str = "vowels"
    seen: list[str] = field(default_factory=list)

    def question(self, split: Split, index: int, seed: int) -> Question:
        assert split == "test"
        return Question("abc"[(index + seed) % 3], "")

    def score(self, question: Question, reply: str) -> float:
        self.seen.append(reply)
        return float(question.prompt != "b")


def tiny() -> LanguageModel:
    """A model that says something, and other things to other questions."""
    config = TransformerConfig(
        vocabulary=TOKENIZER.vocabulary, width=32, layers=1, context=64, attention=(GQA(heads=2),)
    )
    model = config.build(seed=10)
    for weight in model.parameters():
        weight.data *= 6 if weight.ndim == 2 else 1
    return LanguageModel(model, TOKENIZER)


def test_replies_are_greedy_and_scored_by_their_task() -> None:
    model, task = tiny(), Vowels()
    asked = distinct([task, Vowels("again")], 5, seed=1)
    answered = answer_questions(LocalModel(model.model, TOKENIZER), asked, Generation(7))
    assert [(a.task, a.question.prompt) for a in answered] == [
        (name, prompt) for name in ("vowels", "again") for prompt in "bca"
    ]
    for item in answered:
        assert item.reply == model.chat(item.question.prompt, max_tokens=7, temperature=0)
    assert len(set(task.seen)) == 3
    assert task.seen == [item.reply for item in answered[:3]]
    table = estimates_of(answered)
    assert list(table) == ["vowels", "again", "all"]
    assert (table["vowels"].value, table["vowels"].items) == (2 / 3, 3)
    assert table["all"] == wilson(4, 6)


def test_the_length_of_an_answer_is_a_setting() -> None:
    assert Scores().max_tokens == 32
    local, asked = LocalModel(tiny().model, TOKENIZER), distinct([Vowels()], 1, seed=0)
    short, long = (answer_questions(local, asked, Generation(n))[0].reply for n in (2, 20))
    assert long.startswith(short)
    assert len(long) > len(short)


@pytest.mark.parametrize(("given", "asked"), [(None, 3), (2, 2)])
def test_eval_asks_as_many_questions_as_it_is_given(
    given: int | None, asked: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Without `--questions` as many as the file says, of each task of each measure."""
    tasks = [{"kind": "arithmetic", "name": "sums"}, {"kind": "expression"}]
    measures = {
        "scores": {"tasks": tasks, "questions": 3, "max_tokens": 4},
        "words": {"kind": "scores", "tasks": ["identity"], "questions": 3, "max_tokens": 2},
        "held_out": {"tokens": 100},
    }
    path = tmp_path / "measures.yaml"
    path.write_text(yaml.safe_dump({"measures": measures}))
    monkeypatch.setattr(verb, "read", lambda *_, **__: (tiny().model, TOKENIZER))
    options = verb.Options(suite=str(path), questions=given, device="cpu", as_json=True)
    verb.show_evaluation("model", options)
    results = json.loads(capsys.readouterr().out)
    assert results.keys() == {"scores", "words.scores"}
    items = {name: one["items"] for name, one in results["scores"].items()}
    assert items == {"sums": asked, "expression": asked, "all": 2 * asked}
    assert results["words.scores"]["identity"]["items"] == asked


def answers(*marks: float) -> list[Answered]:
    return [Answered("t", Question(str(n), ""), ("",), (mark,), 1) for n, mark in enumerate(marks)]


def test_a_difference_is_paired() -> None:
    chance = random.Random(0)
    hard = [chance.random() for _ in range(400)]  # the same for both models
    base = answers(*(float(h < 0.5) for h in hard))
    better = answers(*(float(h < 0.55) for h in hard))
    found = gain(better, base)
    gains = torch.tensor([a.score - b.score for a, b in zip(better, base, strict=True)])
    half = 1.96 * float(gains.std()) / 20
    assert found.value == pytest.approx(float(gains.mean()))
    assert found.items == 400
    assert (found.low, found.high) == pytest.approx(
        (found.value - half, found.value + half), abs=0.005
    )
    assert found.low > 0  # though the intervals of the two scores overlap
    assert estimates_of(better)["all"].low < estimates_of(base)["all"].high
    opposite = gain(base, better)
    assert (opposite.value, opposite.low, opposite.high) == (-found.value, -found.high, -found.low)
    assert gain(base, better) == opposite


def test_equal_models_do_not_differ() -> None:
    found = gain(answers(1, 0, 1), answers(1, 0, 1))
    assert (found.value, found.low, found.high) == (0, 0, 0)


@pytest.mark.slow
def test_intervals_of_differences_hold_the_truth() -> None:
    """Of 100 experiments with a true difference of 0.1, about 95."""
    chance, held = random.Random(1), 0
    for _ in range(100):
        ours = answers(*(float(chance.random() < 0.7) for _ in range(150)))
        theirs = answers(*(float(chance.random() < 0.6) for _ in range(150)))
        found = gain(ours, theirs)
        held += found.low <= 0.1 <= found.high
    assert 89 <= held <= 99


@pytest.mark.parametrize("other", [answers(1, 0), answers(1, 0, 1)[::-1]])
def test_answers_to_other_questions_are_not_compared(other) -> None:
    with pytest.raises(ValueError, match="not answers to the same questions"):
        gain(answers(1, 0, 1), other)


def test_evaluation_asks_what_training_teaches() -> None:
    """The two files list the same tasks; a change of one must be made in the other."""
    taught = parse(DataConfig, compose("tasks", "data").values).tasks
    settings = parse(EvalConfig, compose("tasks", "eval").values)
    assert settings.first(Scores).tasks == taught
