"""Pieces of a corpus on a Ray cluster: the same bytes as on this machine."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from culm.config import SettingError, parse
from culm.data.prepare import prepare
from culm.data.settings import DataConfig
from culm.data.workers import Workers
from culm.tokenizer.tokenizer import Tokenizer

WORDS = "the river and a stone with green moss that have been warm of old to be here".split()


def corpus(folder: Path, texts: int) -> Path:
    """Of short and long texts, duplicates, near-duplicates and addresses."""
    chance, path = random.Random(0), folder / "texts.jsonl"
    records: list[dict[str, str]] = []
    for number in range(texts):
        own = " ".join(chance.choices(WORDS, k=40_000 if number == 7 else 120)) + "."
        if number % 10 in (3, 5):
            own = records[-1]["text"] + (" Indeed." if number % 10 == 5 else "")
        records.append({"text": own + f" Write to reed{number}@example.org." * (number % 10 == 9)})
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return path


def settings(path: Path, **more: Any) -> DataConfig:
    return parse(DataConfig, {"path": str(path), **more}, "data")


def prepared(data: DataConfig, tokenizer: Tokenizer, out: Path) -> dict[str, bytes]:
    """The files of a corpus."""
    prepare(data.open(), data.format, tokenizer, out, 0.1, cleaner=data.cleaner(out))
    found = (one for one in sorted(out.rglob("*")) if one.is_file())
    return {str(one.relative_to(out)): one.read_bytes() for one in found}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two workers on this machine, which all work of these tests runs on."""
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("clean", [[], ["unicode", "pii", "near_duplicates"]])
def test_a_cluster_of_two_workers_writes_the_same_bytes(
    cluster: None, clean: list, tokenizer: Tokenizer, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("culm.data.clean.cleaner.CHUNK", 20_000)
    monkeypatch.setattr("culm.data.prepare.BATCH", 30_000)
    path = corpus(tmp_path, 300)
    here = prepared(settings(path, clean=clean), tokenizer, tmp_path / "here")
    there = prepared(settings(path, clean=clean, ray="auto"), tokenizer, tmp_path / "there")
    assert here == there
    assert {one.name for one in tmp_path.iterdir()} == {"texts.jsonl", "here", "there"}


@pytest.mark.slow
def test_it_continues_where_another_call_stopped(
    cluster: None, tokenizer: Tokenizer, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("culm.data.clean.cleaner.CHUNK", 20_000)
    monkeypatch.setattr("culm.data.prepare.BATCH", 30_000)
    path = corpus(tmp_path, 1000)
    whole = path.read_text()
    path.write_text(whole + "{oops")
    data, out = settings(path, clean=["pii"], ray="auto"), tmp_path / "out"
    with pytest.raises(SettingError, match=r"texts\.jsonl: line 1001: not readable as JSON"):
        prepared(data, tokenizer, out)
    path.write_text(whole)
    there = prepared(data, tokenizer, out)
    assert "batches of text were tokenised before, and not again" in capsys.readouterr().err
    assert there == prepared(settings(path, clean=["pii"]), tokenizer, tmp_path / "here")


class Breaks:
    """Work that fails in the way that its piece names."""

    def __call__(self, piece: str) -> str:
        if piece == "wrong":
            raise SettingError("data.path: line 3: wrong")
        if piece == "library":
            import no_such_library  # noqa: F401
        if piece == "killed":
            os._exit(1)
        return piece.upper()


@pytest.mark.slow
def test_errors_of_a_cluster_say_what_is_wrong(cluster: None) -> None:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # which is no installed package
    with Workers(ray="auto").pool(Breaks) as pool:
        assert [take() for take in [pool.submit(one) for one in "abc"]] == ["A", "B", "C"]
        for piece, message in [
            ("wrong", r"^data\.path: line 3: wrong$"),
            ("library", r"data\.ray: a machine of the cluster lacks .*no_such_library"),
            ("killed", r"data\.ray: the work on a piece of the corpus was lost: .*; the same comm"),
        ]:
            with pytest.raises(SettingError, match=message):
                pool.submit(piece)()


@pytest.mark.slow
def test_a_cluster_that_is_not_there(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    ray.shutdown()
    missing = r"data\.ray: no cluster at 'auto': .*ray start --head"
    with pytest.raises(SettingError, match=missing), Workers(ray="auto").pool(Breaks):
        pass


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    missing = r"data\.ray: 'local' needs .* 'culm\[ray\]'"
    with pytest.raises(SettingError, match=missing), Workers(ray="local").pool(Breaks):
        pass
