"""Evaluation sets: all planted items are found, as files and as tasks, and nothing else."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from suites import write

from culm.config import parse
from culm.data.clean.cleaner import Cleaner
from culm.data.clean.decontaminate import Decontaminate
from culm.data.clean.stage import Dropped
from culm.data.divide import Unit
from culm.eval.contamination import contamination
from culm.task.prompts import Prompts

WORDS = [f"{a}{b}" for a in "bcdfglmn" for b in ("amber", "orchid", "umbra", "evening", "isle")]


def sentence(chance: random.Random, count: int) -> str:
    return " ".join(chance.choices(WORDS, k=count))


def planted(folder: Path) -> tuple[list[dict], list[str]]:
    """Forty questions, and texts that hold a part of the first ten, or all words of the others in
    another order.
    """
    chance = random.Random(0)
    items = [{"prompt": sentence(chance, 20), "answer": sentence(chance, 3)} for _ in range(40)]
    items.append({"prompt": "Who are you?", "answer": "me"})
    found = []
    for number, item in enumerate(items[:40]):
        words = f"{item['prompt']} {item['answer']}".split()
        start = chance.randrange(len(words) - 12)
        part = words[start : start + 13]
        if number >= 10:
            chance.shuffle(part)
        shown = ", ".join(part).upper()
        found.append(f"{sentence(chance, 200)}\n{shown}! {sentence(chance, 100)}")
    write(folder, "set.jsonl", items)
    return items, found


@pytest.mark.parametrize("by", ["path", "tasks"])
def test_all_planted_items_are_found_and_no_others(by: str, tmp_path: Path) -> None:
    _, texts = planted(tmp_path)
    path = str(tmp_path / "set.jsonl")
    task = {"kind": "prompts", "name": "mine", "path": path, "split": "test"}
    stage = parse(Decontaminate, {"path": path} if by == "path" else {"tasks": [task]})
    name = path if by == "path" else "mine"
    step = stage.build()
    found = [step.apply([text], Counter()) for text in texts]
    assert [isinstance(one, Dropped) for one in found] == [True] * 10 + [False] * 30
    assert {one.reason for one in found if isinstance(one, Dropped)} == {f"overlap with {name}"}
    assert stage.notes() == {
        f"items of {name} have fewer than 13 words and cannot be searched for": 1
    }
    assert stage.files == [tmp_path / "set.jsonl"]


def test_what_is_left_is_clean_to_the_report_of_an_evaluation(tmp_path: Path) -> None:
    items, texts = planted(tmp_path)
    task = Prompts(name="mine", path=str(tmp_path / "set.jsonl"), split="test")
    asked = list(task.asked("test"))
    before = write(tmp_path, "before.jsonl", [{"text": text} for text in texts])
    assert contamination(asked, str(before)).found == [True] * 10 + [False] * 30 + [None]
    cleaner = Cleaner([Decontaminate(tasks=(task,))])
    kept = [unit.contents[0] for unit in cleaner.clean(Unit([text], "x") for text in texts)]
    after = write(tmp_path, "after.jsonl", [{"text": text} for text in kept])
    assert contamination(asked, str(after)).found == [False] * 40 + [None]
    assert len(kept) == 30 < len(items)
    [(reason, dropped)] = cleaner.facts[0].dropped.items()
    assert (reason, dropped.documents, len(dropped.samples)) == ("overlap with mine", 10, 5)


def test_a_changed_set_is_another_set(tmp_path: Path) -> None:
    planted(tmp_path)
    stage = Decontaminate(path=(str(tmp_path / "set.jsonl"),))
    before = Cleaner([stage]).facts[0].digests
    (tmp_path / "set.jsonl").write_text(json.dumps({"prompt": "other"}))
    assert Cleaner([stage]).facts[0].digests != before


def test_public_questions_in_their_text(shared) -> None:
    path = str(shared("eval_mc_train/openbookqa.train.jsonl.gz"))
    step, chance = Decontaminate(path=(path,)).build(), random.Random(2)
    from culm.source import open_source
    from culm.source.source import strings_in

    items = [" ".join(strings_in(dict(record))) for record in open_source(path)]
    long = [item for item in items if len(item.split()) >= 24]
    for item in chance.sample(long, 30):
        words = item.split()
        text = f"{sentence(chance, 50)} {' '.join(words[3:20])} {sentence(chance, 50)}"
        assert isinstance(step.apply([text], Counter()), Dropped)
        assert not isinstance(step.apply([sentence(chance, 300)], Counter()), Dropped)
