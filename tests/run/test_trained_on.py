"""Each stage adds what it trained on to that of the model it started from."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from culm.config import parse
from culm.convert.load import load_model
from culm.data.prepare import prepare
from culm.data.settings import DataConfig
from culm.run.settings import RunConfig
from culm.run.train import train
from culm.tokenizer.bytes import Bytes


def stages(settings: dict[str, Any], folder: Path, **more: Any) -> tuple[str, ...]:
    """Of the model of a run."""
    train(parse(RunConfig, {**settings, "folder": str(folder), **more}))
    return load_model(folder)[0].trained_on


def test_each_stage_adds_its_own(stage: Callable[..., dict], tmp_path: Path, corpora: Path) -> None:
    base, tuned, again = tmp_path / "base", tmp_path / "tuned", tmp_path / "again"
    text = ("plain text (text.jsonl)",)
    assert stages(stage("pretrain", steps=1), base) == text
    found = stages(stage("sft", steps=1), tuned, start=str(base))
    assert found == (*text, "dialogues (chat.jsonl)")
    assert stages(stage("sft", steps=1), again, start=str(tuned)) == found  # the same once more
    adapted = stages(stage("sft", steps=1, adapter=True), tmp_path / "lora", start=str(base))
    assert adapted == found
    assert load_model(tmp_path / "lora" / "adapter")[0].trained_on == (
        *text, "the data of an adapter",
    )  # fmt: skip
    for name, last in {
        "dpo": "preferences (pairs.jsonl)",
        "reward": "preferences (pairs.jsonl)",
        "grpo": "rewards (count)",
    }.items():
        assert stages(stage(name, steps=1), tmp_path / name, start=str(tuned)) == (*found, last)


def test_a_prepared_corpus_and_a_model_from_elsewhere(
    stage: Callable[..., dict], tmp_path: Path, corpora: Path
) -> None:
    settings, corpus = stage("pretrain", steps=1), tmp_path / "corpus"
    data = parse(DataConfig, settings["data"])
    prepare(data.open(), data.format, Bytes(specials=True).build(), corpus, 0.1)
    [found] = stages(settings, tmp_path / "run", data={"prepared": str(corpus)}, tokenizer=None)
    assert found == f"plain text ({corpora / 'text.jsonl'})"
    model = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "run" / "model", model)
    loaded, words = load_model(model)
    loaded.trained_on = ()
    from culm.convert import hf

    hf.export(loaded, words, tmp_path / "owner")
    assert stages(stage("sft", steps=1), tmp_path / "sft", start=str(tmp_path / "owner")) == (
        "the data of owner", "dialogues (chat.jsonl)",
    )  # fmt: skip


@pytest.mark.parametrize(("count", "shown"), [(8, "7.txt)"), (11, "7.txt and 3 more)")])
def test_many_files_are_counted(
    count: int, shown: str, stage: Callable[..., dict], tmp_path: Path
) -> None:
    paths = [tmp_path / f"{number}.txt" for number in range(count)]
    for path in paths:
        path.write_text(f"{path.name} tells of a fox.\n" * 5)
    data = {"path": [str(path) for path in paths], "held_out": 0.2}
    [found] = stages(stage("pretrain", steps=1), tmp_path / "run", data=data)
    assert found.endswith(shown)
