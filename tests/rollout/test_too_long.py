"""Prompts that leave no room for an answer are counted, and others are asked in their place."""

import json
from pathlib import Path

import pytest
from learning import build
from rolling import TOKENIZER, model, rollouts

from culm.config import SettingError
from culm.objective.grpo import GRPO
from culm.rollout.buffer import Rollouts
from culm.rollout.environment import MEASURED, too_long
from culm.task.prompts import Prompts
from culm.task.task import split_of

CONTEXT = 48


def text(number: int, long: bool) -> str:
    return f"What comes after {number}?" + " word" * (40 if long else 0)


def questions(path: Path, long: set[int], count: int = 60) -> Prompts:
    rows = [{"prompt": text(n, n in long), "answer": n + 1} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Prompts(path=str(path))


def asked(task: Prompts) -> Rollouts:
    objective = build(GRPO(), model(0, CONTEXT))
    return rollouts(objective, rows=8, micro_rows=8, tasks=[task], group=2, max_tokens=3)


def too_long_in(found: Rollouts) -> tuple[int, int]:
    return too_long(found.fitting, found.seed + 1)


def test_one_prompt_that_is_too_long(tmp_path: Path) -> None:
    """The run passes its place, with the same questions as otherwise in all others."""
    number = next(
        n for n in range(60) if {split_of(text(n, x)) for x in (False, True)} == {"train"}
    )
    plain = asked(questions(tmp_path / "a.jsonl", set()))
    some = asked(questions(tmp_path / "b.jsonl", {number}))
    assert too_long_in(plain) == (0, MEASURED)
    assert plain.remarks == []
    count = sum(split_of(text(n, False)) == "train" for n in range(60))
    assert too_long_in(some) in [(MEASURED // count, MEASURED), (MEASURED // count + 1, MEASURED)]
    prompts = [
        [one._episodes(index)[0].prompt[0]["content"] for index in range(count)]
        for one in (plain, some)
    ]
    [(was, now)] = [(a, b) for a, b in zip(*prompts, strict=True) if a != b]
    assert was == text(number, False)
    assert "word" not in now
    [remark] = some.remarks
    assert "questions leave no room for an answer within 48 tokens" in remark
    shares = []
    for step in range(count // 4 + 1):
        [batch] = some.step(step)
        assert int(batch.lengths.max()) < CONTEXT
        shares.append(batch.metrics["replaced_prompts"])
    assert {0.0, 0.25} <= set(shares)


def test_replacing_is_the_same_after_a_resume_and_in_a_group(tmp_path: Path) -> None:
    task = questions(tmp_path / "q.jsonl", set(range(0, 60, 2)))
    one, two = asked(task), asked(task)
    first = [one._episodes(index)[0].prompt for index in range(30)]
    assert [two._episodes(index)[0].prompt for index in reversed(range(30))][::-1] == first
    assert too_long_in(one)[0] > MEASURED // 4


def test_nothing_but_prompts_that_are_too_long(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"data\.tasks: 1000 questions in a row leave no room"):
        _ = asked(questions(tmp_path / "q.jsonl", set(range(60)))).remarks


def test_the_length_of_a_prompt_decides(tmp_path: Path) -> None:
    sampler = asked(questions(tmp_path / "q.jsonl", set())).sampler
    frame = len(TOKENIZER.chat.prompt([{"role": "user", "content": ""}]))
    for length, fits in ((CONTEXT - frame - 1, True), (CONTEXT - frame, False)):
        assert sampler.fits([{"role": "user", "content": "x" * length}]) == fits
