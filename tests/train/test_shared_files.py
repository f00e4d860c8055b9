"""Public files of instructions and preferences train as they are: a plan, then two steps."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import culm.verbs.plan_needs
from culm.config import SettingError, parse
from culm.convert import native
from culm.model.attention.gqa import GQA
from culm.model.transformer import TransformerConfig
from culm.run.settings import RunConfig
from culm.run.train import train
from culm.tokenizer.train import BPE
from culm.verbs.plan import show_plan

pytestmark = pytest.mark.slow
FORMATS = {"sft": "chat", "dpo": "pair", "reward": "pair", "kto": "label"}
OBJECTIVES = {"sft": "next_token", "dpo": "preference", "reward": "reward", "kto": "kto"}

EQUAL = "6 pairs have the same chosen and rejected answer and are left out."

# Each with the verb that fits, and what is said of its records.
FILES: list[tuple[str, str, list[str]]] = [
    ("sft/alpaca_en_demo.json", "sft", ["14 records are duplicates and dropped"]),
    ("sft/identity.json", "sft", []),
    ("sft/instruction-data.json", "sft", []),
    ("sft/mt_bench_question.jsonl", "sft", ["41 dialogues have questions without answers and"]),
    ("sft/seed_tasks.jsonl", "sft", []),
    ("sft/sft_sample.jsonl", "sft", []),
    ("preferences/dpo_en_demo.json.gz", "dpo", []),
    ("preferences/dpo_en_demo.json.gz", "reward", []),
    ("preferences/hh_harmless-base_test.jsonl.gz", "dpo", []),
    ("preferences/hh_harmless-base_test.jsonl.gz", "reward", []),
    ("preferences/instruction-data-with-preference.json", "dpo", [EQUAL]),
    ("preferences/instruction-data-with-preference.json", "reward", [EQUAL]),
    ("preferences/kto_en_demo.json.gz", "kto", []),
    ("preferences/preference_sample.jsonl", "dpo", []),
    ("preferences/preference_sample.jsonl", "reward", []),
    ("preferences/stack_exchange_paired_tiny.json", "dpo", []),
    ("preferences/stack_exchange_paired_tiny.json", "reward", []),
]


@pytest.fixture(scope="module")
def start(shared: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose context most dialogues fit into."""
    folder = tmp_path_factory.mktemp("start") / "model"
    tokenizer = BPE(vocabulary=1000).build([shared("sft/alpaca_en_demo.json").read_text()])
    config = TransformerConfig(
        vocabulary=1000, width=16, layers=1, context=2048, attention=(GQA(heads=2, kv_heads=1),)
    )
    native.save(config.build(0), tokenizer, folder)
    return folder


@pytest.fixture
def run(
    shared: Callable[[str], Path], start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str], RunConfig]:
    monkeypatch.setattr(culm.verbs.plan_needs, "_rate", lambda *_: 1e9)  # which takes seconds

    def config(file: str, verb: str) -> RunConfig:
        settings: dict[str, Any] = {
            "start": str(start),
            "folder": str(tmp_path / "run"),
            "device": "cpu",
            "data": {"path": str(shared(file)), "format": FORMATS[verb]},
            "train": {
                "steps": 2, "batch_size": 4, "micro_batch_size": 2, "precision": "fp32",
                "objective": OBJECTIVES[verb],
            },
        }  # fmt: skip
        return parse(RunConfig, settings)

    return config


@pytest.mark.parametrize(("file", "verb", "remarks"), FILES)
def test_a_plan_and_two_steps(file, verb, remarks, run, capsys):
    config = run(file, verb)
    show_plan(config, {})
    shown = " ".join(capsys.readouterr().out.split())
    result = train(config)
    said = result.results.get("data", [])
    for remark in remarks:
        assert remark in shown
        assert any(remark in one for one in said)
    lines = (result.folder / "metrics.jsonl").read_text().splitlines()
    losses = [found["loss"] for found in map(json.loads, lines) if "loss" in found]
    assert len(losses) >= 2
    assert all(map(math.isfinite, losses))


def test_answers_without_their_questions_are_refused(run):
    config = run("sft/mt_bench_reference_gpt4.jsonl", "sft")
    for work in (lambda: show_plan(config, {}), lambda: train(config)):
        with pytest.raises(SettingError, match=r"line 1: no dialogue in it .* choices \(a list\)"):
            work()
