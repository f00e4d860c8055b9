"""Runs that tokenise their text while they train."""

import json
from pathlib import Path

import pytest
import torch
from stages import weights_in

from culm.config import SettingError, parse
from culm.data.settings import DataConfig
from culm.data.source_file import sampled_digest
from culm.files import read_lines
from culm.run.settings import RunConfig
from culm.run.train import train
from culm.tokenizer.train import BPE
from culm.verbs.plan import show_plan


def config(stage, corpora: Path, folder: Path, stream=None, **more) -> RunConfig:
    run = stage("pretrain", **more)
    run["data"] = {
        "path": str(corpora / "text.jsonl"), "held_out": 0,
        "stream": {"workers": 1, "shuffle": 16, **(stream or {})},
    }  # fmt: skip
    return parse(RunConfig, {**run, "folder": str(folder)})


def test_a_run_resumes_exactly_and_writes_no_corpus(stage, corpora: Path, tmp_path: Path) -> None:
    def run(folder: Path, steps: int, **stream):
        more = {"steps": steps, "checkpoint": {"every_steps": 3}}
        return train(config(stage, corpora, folder, stream, **more))

    run(tmp_path / "one", 7)
    run(tmp_path / "two", 3)
    run(tmp_path / "two", 7, workers=2, prefetch=3)
    one, two = (weights_in(tmp_path / name) for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not (tmp_path / "one" / "data").exists()
    lines = read_lines(tmp_path / "one" / "metrics.jsonl")
    assert all(0 <= line["waiting"] <= 1 for line in lines)
    assert "text.jsonl" in (tmp_path / "one" / "model" / "README.md").read_text()


def test_other_text_is_refused(stage, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    file = tmp_path / "text" / "text.jsonl"
    file.write_text("".join(json.dumps({"text": f"words {n} " * 9}) + "\n" for n in range(60)))
    train(config(stage, file.parent, tmp_path / "run", steps=2))
    show_plan(config(stage, file.parent, tmp_path / "run", steps=4), {})
    before = file.read_text()
    for after in (before * 2, before.replace("words 7", "Words 7")):  # the second of equal size
        file.write_text(after)
        for start in (lambda run: show_plan(run, {}), train):
            with pytest.raises(SettingError, match="trained on other data, or in another order"):
                start(config(stage, file.parent, tmp_path / "run", steps=4))


def test_a_large_file_is_known_by_its_size_and_parts_of_it(tmp_path: Path) -> None:
    file, size = tmp_path / "text", 3 << 20
    file.write_bytes(bytes(size))
    first = sampled_digest(file)
    found = {first}
    for place in (0, size // 2, size - 1):
        with file.open("r+b") as opened:
            opened.seek(place)
            opened.write(b"a")
        found.add(sampled_digest(file))
    file.write_bytes(bytes(size + 1))
    assert len(found | {sampled_digest(file)}) >= 4
    file.write_bytes(bytes(size))
    assert sampled_digest(file) == first


def test_other_windows_are_refused(stage, corpora: Path, tmp_path: Path) -> None:
    train(config(stage, corpora, tmp_path / "run", steps=2))
    with pytest.raises(SettingError, match=r"data\.stream\.shuffle: 8, but"):
        train(config(stage, corpora, tmp_path / "run", {"shuffle": 8}, steps=4))


def test_a_plan_shows_what_a_stream_gives(stage, corpora: Path, tmp_path: Path, capsys) -> None:
    show_plan(config(stage, corpora, tmp_path / "run", steps=2), {})
    shown = " ".join(capsys.readouterr().out.split())
    assert "stream 1 process that tokenises on each rank, windows of 16 documents" in shown
    assert "No problem found" in shown


def test_a_saved_tokenizer(stage, corpora: Path, tmp_path: Path) -> None:
    BPE(vocabulary=300).build(["the quick brown fox " * 50]).save(tmp_path / "words")
    run = stage("pretrain", steps=1)
    run["tokenizer"] = {"kind": "saved", "path": str(tmp_path / "words")}
    run["model"] |= {"vocabulary": 300}
    train(parse(RunConfig, {**run, "folder": str(tmp_path / "run")}))
    saved, used = tmp_path / "words", tmp_path / "run" / "model"
    assert (used / "tokenizer.json").read_text() == (saved / "tokenizer.json").read_text()
    run["tokenizer"]["path"] = str(tmp_path / "nothing")
    with pytest.raises(SettingError, match=r"tokenizer\.path: .*nothing"):
        train(parse(RunConfig, {**run, "folder": str(tmp_path / "other")}))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"held_out": 0.1}, r"held_out: a stream holds nothing out"),
        ({"format": "chat"}, r"stream: it reads the text of path only"),
        ({"curriculum": {"steps": 3}}, r"curriculum: it needs a prepared corpus"),
        ({"mix": [{"weight": 1}, {"corpus": "b", "weight": 1}]}, r"mix: it needs a prepared"),
        ({"packing": "best_fit"}, r"packing: a stream is wrapped"),
        ({"clean": ["c4"]}, r"clean: it needs the complete corpus"),
    ],
)
def test_what_needs_the_whole_corpus_is_refused(more, message) -> None:
    with pytest.raises(SettingError, match=message):
        parse(DataConfig, {"path": "a", "held_out": 0, "stream": {}, **more})


def test_a_tokenizer_is_not_trained_on_a_stream(stage, corpora: Path, tmp_path: Path) -> None:
    run = stage("pretrain", steps=1)
    run["data"] = {"path": str(corpora / "text.jsonl"), "held_out": 0, "stream": {}}
    run["tokenizer"] = {"kind": "bpe", "vocabulary": 300}
    with pytest.raises(SettingError, match="tokenizer: a stream is not read to train one"):
        parse(RunConfig, {**run, "folder": str(tmp_path / "run")})
