"""The beginning of a corpus, and the blueprint's run on a stream that is larger than its bounds."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_prepare import Records

from culm.config import SettingError, parse
from culm.data.format.document import DocumentFormat
from culm.data.manifest import Manifest
from culm.data.prepare import prepare
from culm.data.settings import DataConfig
from culm.files import read_lines
from culm.run.settings import read_run
from culm.run.train import train
from culm.source import Limited
from culm.tokenizer.tokenizer import Tokenizer

TEXTS = DocumentFormat().texts


def test_the_beginning_of_a_source():
    source = Records([{"text": "é" * 5, "id": n, "url": "x"} for n in range(20)], size=400)
    assert [r["id"] for r in Limited(source, TEXTS, 3, None)] == [0, 1, 2]
    assert [r["id"] for r in Limited(source, TEXTS, None, 30)] == [0, 1, 2]
    assert [r["id"] for r in Limited(source, TEXTS, None, 31)] == [0, 1, 2, 3]
    assert [r["id"] for r in Limited(source, TEXTS, 2, 1000)] == [0, 1]
    assert (Limited(source, TEXTS, None, 30).size, Limited(source, TEXTS, 3, None).size) == (
        30,
        400,
    )


def test_a_limit_stops_reading_a_stream(tmp_path: Path):
    def endless():
        for number in range(10_000):
            assert number <= 50, "read on"
            yield {"text": str(number)}

    assert len(list(Limited(Records(endless()), TEXTS, 50, None))) == 50
    (tmp_path / "a.txt").write_text("a\nb\nc\n")
    settings = {"path": str(tmp_path / "a.txt"), "split": "lines", "max_documents": 2}
    assert [r["text"] for r in parse(DataConfig, settings).open()] == ["a", "b"]
    assert parse(DataConfig, {**settings, "max_documents": None}).open().size == 6


def test_a_limit_leaves_what_cannot_be_read_to_the_reader(tmp_path: Path, tokenizer: Tokenizer):
    lines = [
        '{"text": 3}',
        "{broken",
        "[1]",
        '{"text": "good"}',
        '{"text": "more"}',
        '{"text": ""}',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    values = {"path": str(tmp_path / "a.jsonl"), "invalid": "skip", "max_bytes": 5, "held_out": 0}
    data = parse(DataConfig, values)
    source = data.open()
    assert [r.get("text") for r in source] == [3, None, None, "good", "more"]
    manifest = prepare(source, data.format, tokenizer, tmp_path / "c", 0, invalid="skip")
    assert manifest.documents == 2
    assert list(manifest.notes.values()) == [3]
    source = parse(DataConfig, {**values, "invalid": "error"}).open()
    with pytest.raises(SettingError, match=r"a\.jsonl: line 1: 'text' is a number"):
        prepare(source, data.format, tokenizer, tmp_path / "d", 0)


@pytest.fixture
def blueprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The run `llm-v1` in a small size; the hub is a parquet file here."""
    pyarrow = pytest.importorskip("pyarrow")
    datasets = pytest.importorskip("datasets")
    from pyarrow import parquet

    rows = [{"text": f"Page {n} tells of fox and crow. " * 9, "id": str(n)} for n in range(2000)]
    file = tmp_path / "part.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=64)
    read = datasets.load_dataset

    def load_dataset(name: str, subset: str, split: str, revision: None, streaming: bool) -> Any:
        assert (name, subset, split) == ("HuggingFaceFW/fineweb-edu", "sample-10BT", "train")
        return read("parquet", data_files=str(file), split=split, streaming=streaming)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    ranks = [bytes([byte]) for byte in range(256)] + [b"ag", b" f", b" fo", b" fox", b"te"]
    lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(ranks)]
    (tmp_path / "tiny.tiktoken").write_text("\n".join(lines))
    settings = [
        f"folder={tmp_path / 'run'}", f"tokenizer.path={tmp_path / 'tiny.tiktoken'}",
        "device=cpu", "model.vocabulary=267", "model.width=32", "model.layers=2",
        "model.context=64", "model.attention.heads=4", "model.attention.kv_heads=2",
        "model.mlp.hidden=48", "train.steps=3", "train.batch_size=4", "train.micro_batch_size=2",
        "train.compile=false", "eval.measures.held_out.tokens=200",
    ]  # fmt: skip

    def go(*more: str) -> Any:
        names = {setting.partition("=")[0] for setting in more}
        kept = [setting for setting in settings if setting.partition("=")[0] not in names]
        return train(read_run("llm-v1", [*kept, *more])[0])

    return go


def test_llm_v1_trains_on_the_start_of_a_stream(blueprint, tmp_path):
    assert blueprint("data.max_bytes=30000").finished
    assert len(read_lines(tmp_path / "run" / "metrics.jsonl")) == 3
    manifest = Manifest.read(tmp_path / "run" / "data")
    assert 30_000 <= manifest.bytes < 31_000
    assert set(manifest.splits) == {"train", "held_out"}


def test_llm_v1_without_its_vocabulary_says_where_to_get_it(blueprint, tmp_path):
    with pytest.raises(SettingError, match=r"cl100k_base\.tiktoken: .* download https://.*cl100k"):
        blueprint("tokenizer.path=cl100k_base.tiktoken")
    assert not (tmp_path / "run" / "data").exists()
