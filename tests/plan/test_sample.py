"""What a plan reads, what it finds there, and how good its figures are."""

from __future__ import annotations

import gzip
import json
import random
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from culm.config import SettingError
from culm.data.format.chat import ChatFormat
from culm.data.format.document import DocumentFormat
from culm.data.prepare import prepare
from culm.plan.sample import relative_error, sample
from culm.run.settings import read_run
from culm.source import Limited, open_source
from culm.tokenizer.train import BPE
from culm.verbs.plan import show_plan

WORDS = [chr(97 + n % 26) * (1 + n % 7) + str(n) for n in range(2000)]


def lines(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Records whose words change slowly from the first to the last."""
    chance = random.Random(seed)
    return [
        {
            "text": " ".join(
                WORDS[int(chance.triangular(0, 1999, 1999 * n / count))] for _ in range(40)
            ),
            "n": n,
        }
        for n in range(count)
    ]


def write(path: Path, records: list[Any]) -> Path:
    data = "".join(json.dumps(one) + "\n" for one in records).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_small_corpus_is_read_whole(name: str, tmp_path: Path) -> None:
    records = lines(100)
    found = sample(open_source(write(tmp_path / name, records)), DocumentFormat())
    assert found.whole
    assert list(found) == records
    assert found.share == 1.0
    assert found.read_bytes == found.total == sum(len(one["text"]) for one in records)


def test_of_a_larger_one_a_sample_from_all_of_it_is_encoded(tmp_path: Path) -> None:
    records = lines(1000)
    source = open_source(write(tmp_path / "a.jsonl", records))
    text = sum(len(one["text"]) for one in records)
    found = sample(source, DocumentFormat(), size=text // 6)
    assert (found.ended, found.whole, found.total) == (True, False, text)
    assert [one["n"] for one in found] == list(range(0, 1000, 8))
    assert found.share == pytest.approx(1 / 8, rel=0.05)


def test_of_the_largest_the_beginning_is_read(tmp_path: Path) -> None:
    records = lines(1000)
    source = open_source(write(tmp_path / "a.jsonl", records))
    text = sum(len(one["text"]) for one in records)
    found = sample(source, DocumentFormat(), size=text // 20, checked=text // 2)
    assert not found.ended
    assert found.read_bytes == pytest.approx(text / 2, rel=0.01)
    assert found.total == pytest.approx(text, rel=0.05)  # from the size of the file
    zipped = open_source(write(tmp_path / "a.jsonl.gz", records))
    assert sample(zipped, DocumentFormat(), checked=1000).total is None
    limited = Limited(zipped, DocumentFormat().texts, documents=500, bytes=None)
    assert sample(limited, DocumentFormat(), checked=50_000).total == pytest.approx(
        text / 2, rel=0.1
    )
    limited = Limited(zipped, DocumentFormat().texts, documents=None, bytes=9000)
    assert sample(limited, DocumentFormat(), checked=1000).total == 9000


def test_what_cannot_be_read_is_found_and_counted(tmp_path: Path, tokenizer: Any) -> None:
    records: list[Any] = [*lines(900), {"text": 3}, *lines(100, seed=1), [1]]
    path = write(tmp_path / "a.jsonl", records)
    with pytest.raises(
        SettingError, match=r"a\.jsonl: line 901: 'text' is a number.*data\.invalid=skip"
    ):
        sample(open_source(path), DocumentFormat(), size=1000)
    found = sample(open_source(path, invalid="skip"), DocumentFormat(), "skip")
    manifest = prepare(found, DocumentFormat(), tokenizer, tmp_path / "p", invalid="skip")
    assert manifest.notes["records cannot be read and are left out"] == 2
    pairs = [{"messages": [{"role": "user", "content": "?"}]}]
    assert sample(open_source(write(path, pairs)), ChatFormat()).read_records == 1


@pytest.mark.parametrize("seed", range(3))
def test_tokens_are_within_the_stated_error(seed: int, tmp_path: Path) -> None:
    """Against the tokenizer that is trained on all of it, and all of its tokens."""
    path = write(tmp_path / "a.jsonl", lines(4000, seed))
    text = open_source(path)
    found = sample(text, DocumentFormat(), size=150_000)
    settings = BPE(vocabulary=800)
    tokenizer = settings.build(one["text"] for one in found.half())
    error = relative_error(found, DocumentFormat(), tokenizer, half=True)
    assert error is not None
    assert error < 0.1
    planned = sum(len(tokenizer.encode(one["text"])) for one in found) / (found.share or 1)
    final = settings.build(one["text"] for one in text)
    true = sum(len(final.encode(one["text"])) for one in text)
    assert planned == pytest.approx(true, rel=error)


def test_few_records_have_no_stated_error(tokenizer: Any, tmp_path: Path) -> None:
    found = sample(open_source(write(tmp_path / "a.jsonl", lines(10))), DocumentFormat())
    assert relative_error(found, DocumentFormat(), tokenizer, half=False) is None


def planned(capsys: pytest.CaptureFixture, *settings: str) -> dict[str, str]:
    """The lines of a plan, by their first column."""
    run = [
        "model={vocabulary: 300, width: 16, layers: 1, context: 64}",
        "model.attention={kind: gqa, heads: 2}",
    ]
    show_plan(*read_run("pretrain", [*run, "device=cpu", "train.precision=fp32", *settings]))
    shown = re.sub(r"\n {8,}(?=\S)", " ", capsys.readouterr().out)  # wrapped lines
    rows = re.findall(r"^  (\w[\w ]*?)  +(\S.*)$", shown, re.M)
    return {name: value.strip() for name, value in rows}


@pytest.mark.slow
def test_a_plan_says_what_it_read(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": one["text"]} for one in lines(1000)])
    settings = [
        f"data.path={path}",
        f"folder={tmp_path}/run",
        "train.steps=10",
        "data.held_out=0.1",
    ]
    facts = planned(capsys, *settings)
    assert facts["read"].startswith("all: ")
    assert facts["read"].endswith("1,000 records")
    assert "about" not in facts["learned tokens"]
    assert re.fullmatch(r"(8|9|10|11)\.\d % of the bytes, in \d+ documents", facts["held out"])
    smaller = partial(sample, size=40_000, checked=100_000)
    monkeypatch.setattr("culm.verbs.preview.sample", smaller)
    facts = planned(capsys, *settings)
    assert re.search(r"the first .* of about .*; figures are from \d+ of them", facts["read"])
    assert re.fullmatch(r"about .* ± \d+ %", facts["learned tokens"])
    assert re.fullmatch(r"about .* ± \d+ %", facts["epochs"])
    assert facts["held out"] == "about 10.0 % of the bytes"
    path.write_text(path.read_text() + '{"text": 1}\n')
    assert planned(capsys, *settings)["read"].endswith("the run will check the others")
    monkeypatch.undo()
    with pytest.raises(SettingError, match=r"a\.jsonl: line 1001: 'text' is a number"):
        planned(capsys, *settings)
