"""Questions whose words are in a training text are found, and no others."""

import json
import random

import pytest
from suites import write

from culm.config import SettingError
from culm.eval.contamination import contamination
from culm.eval.questions import Answered
from culm.task.task import Option, Question

WORDS = [f"{a}{b}" for a in "bcdfglmn" for b in ("amber", "orchid", "umbra", "evening", "isle")]


def sentence(chance: random.Random, count: int) -> str:
    return " ".join(chance.choices(WORDS, k=count))


def test_planted_questions_are_found_and_shuffled_ones_are_not(tmp_path) -> None:
    chance = random.Random(0)
    asked = [Question(sentence(chance, 20), sentence(chance, 3)) for _ in range(40)]
    short = Question("Who are you?", "me")
    texts = [sentence(chance, 500) for _ in range(20)]
    for number in range(5):  # in other letters, with other punctuation
        planted = asked[number].prompt.upper().replace(" ", ", ")
        texts[number] += f"\n{planted}!\n{sentence(chance, 50)}"
    for number in range(5, 40):
        words = asked[number].prompt.split()
        chance.shuffle(words)
        texts[number % 20] += " " + " ".join(words)
    path = write(tmp_path, "text.jsonl", [{"text": text} for text in texts])
    found = contamination([*asked, short], str(path))
    assert found.found == [True] * 5 + [False] * 35 + [None]
    answered = [
        Answered("t", one, ("",), (float(number < 8),), 1)
        for number, one in enumerate([*asked, short])
    ]
    assert found.report(answered) == {
        "t": {
            "clean": {"items": 35, "value": 3 / 35}, "dirty": {"items": 5, "value": 1.0},
            "short": {"items": 1, "value": 0.0},
        }
    }  # fmt: skip


def test_an_answer_counts_and_an_example_does_not(tmp_path) -> None:
    chance = random.Random(1)
    example, own, answer = sentence(chance, 30), sentence(chance, 13), sentence(chance, 5)
    prompt = f"{example}\n\n{own}"
    question = Question(prompt, answer, options=(Option(prompt, f" {answer}"),))
    path = write(tmp_path, "a.jsonl", [{"text": example}])
    assert contamination([question], str(path)).found == [False]
    end = " ".join(own.split()[-9:])
    path = write(tmp_path, "a.jsonl", [{"text": f"{end} {answer}"}])
    assert contamination([question], str(path)).found == [True]


def test_records_need_a_text(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"question": "x"}))
    with pytest.raises(SettingError, match=r"line 1: no text or number in .text."):
        contamination([Question("a", "b")], str(path))
