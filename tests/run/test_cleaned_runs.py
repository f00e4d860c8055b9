"""A run cleans its text once, for tokenizer and corpus, and its plan shows what is dropped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from culm.config import SettingError, parse
from culm.data.clean.chunk import clean_unit
from culm.data.manifest import Manifest
from culm.run.settings import RunConfig
from culm.run.train import train
from culm.verbs.plan import show_plan

CLEAN = [{"kind": "gopher", "min_words": 8, "min_stop_words": None}, "pii"]
DROPPED = "10 documents are dropped by gopher: fewer than 8 words."
MASKED = "30 email addresses are masked (pii)."


@pytest.fixture
def settings(stage: Callable[..., dict[str, Any]], tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "text.jsonl"
    records = [f"reeds and rivers of number {n}, write to zzzz{n}@zzzz.org" for n in range(30)]
    records += [f"short {n}" for n in range(10)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in records))
    run = stage("pretrain", steps=2)
    model = {**run["model"], "vocabulary": 300}
    data = {"path": str(path), "held_out": 0.1, "clean": CLEAN}
    folder = str(tmp_path / "run")
    return {**run, "tokenizer": {"kind": "bpe"}, "model": model, "data": data, "folder": folder}


def test_text_is_cleaned_once_for_tokenizer_and_corpus(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    monkeypatch.setattr(
        "culm.data.clean.chunk.clean_unit",
        lambda steps, texts, sizes: done.append(texts) or clean_unit(steps, texts, sizes),
    )
    train(parse(RunConfig, settings))
    assert len(done) == 40
    manifest = Manifest.read(tmp_path / "run" / "data")
    assert {DROPPED, MASKED} <= set(manifest.remarks)
    vocabulary = json.loads((tmp_path / "run" / "tokenizer" / "tokenizer.json").read_text())
    assert not any("zz" in token for token in vocabulary["model"]["vocab"])
    assert not list((tmp_path / "run").glob(".data*"))


@pytest.mark.slow
def test_a_plan_shows_what_is_dropped(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_plan(parse(RunConfig, settings), {})
    said = " ".join(capsys.readouterr().out.split())
    assert DROPPED in said
    assert MASKED in said
    assert not (tmp_path / "run").exists()


def test_stages_are_fixed_once_something_is_trained_and_workers_are_not(
    settings: dict[str, Any],
) -> None:
    train(parse(RunConfig, settings))
    data, longer = settings["data"], {**settings["train"], "steps": 3}
    train(parse(RunConfig, {**settings, "train": longer, "data": {**data, "workers": 2}}))
    other = {**settings, "train": longer, "data": {**data, "clean": ["pii"]}}
    with pytest.raises(SettingError, match=r"data\.clean: "):
        train(parse(RunConfig, other))
