"""A run that is refused says so in the plan too, names the file at fault, and leaves nothing."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import culm.files
import culm.verbs.plan
from culm.atomic import atomic
from culm.config import SettingError, parse
from culm.run.settings import RunConfig
from culm.run.train import train
from culm.verbs.plan import show_plan


def test_a_prepared_column_without_effect_is_refused(
    stage: Callable[..., dict], tmp_path: Path
) -> None:
    """Margins of a corpus that a reward model learned from, in a run of preferences."""
    lines = [
        {"prompt": f"q{n}", "chosen": "yes" * n, "rejected": "no", "by": n} for n in range(1, 40)
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    reward = stage("reward", steps=1)
    reward["data"] = {"path": str(file), "format": {"kind": "pair", "margin": "by"}}
    train(parse(RunConfig, {**reward, "folder": str(tmp_path / "reward")}))
    run = stage("dpo", steps=1)
    run["data"] = {"prepared": str(tmp_path / "reward" / "data")}
    config = parse(RunConfig, {**run, "folder": str(tmp_path / "run")})
    for start in (lambda: show_plan(config, {}), lambda: train(config)):
        with pytest.raises(SettingError, match=r"margin: preference with these settings does not"):
            start()


@pytest.mark.parametrize(
    "change",
    [
        {"start": "missing"},
        {"start": "missing", "tokenizer": None},
        {"data": {"path": "missing.jsonl", "format": "chat"}},
        {"train": {"context": 10**6}},
    ],
)
def test_a_refused_run_leaves_no_folder(
    change: dict[str, Any], stage: Callable[..., dict], tmp_path: Path
) -> None:
    settings = stage("sft", steps=1)
    settings["train"] |= change.get("train", {})
    settings |= {name: value for name, value in change.items() if name != "train"}
    folder = tmp_path / "run"
    with pytest.raises(SettingError):
        train(parse(RunConfig, {**settings, "folder": str(folder)}))
    assert not folder.exists()
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(SettingError):
        train(parse(RunConfig, {**settings, "folder": str(folder)}))
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("below", ["", "new", "new/run"])
def test_a_folder_that_cannot_be_written_is_found_by_the_plan_too(
    below: str, stage: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.access
    monkeypatch.setattr(
        culm.files.os, "access",
        lambda path, mode: Path(path) != tmp_path and real(path, mode),
    )  # fmt: skip
    monkeypatch.setattr(culm.verbs.plan, "show_needs", lambda *_: None)
    config = parse(RunConfig, {**stage("sft", steps=1), "folder": str(tmp_path / below)})
    refused = f"folder: {tmp_path} cannot be written to .* choose another folder="
    for work in (lambda: show_plan(config, {}), lambda: train(config)):
        with pytest.raises(SettingError, match=refused):
            work()


@pytest.mark.parametrize("name", ["books/a.txt", "../a.txt", "a.txt", ".corpus.txt"])
def test_a_file_that_cannot_be_read_is_not_called_the_one_that_is_written(
    name: str, tmp_path: Path
) -> None:
    source = tmp_path / "corpora" / name

    def read_while_writing() -> None:
        with atomic(tmp_path / "corpora" / "corpus") as fresh:
            fresh.mkdir()
            raise PermissionError(errno.EACCES, "Permission denied", str(source))

    with pytest.raises(PermissionError) as caught:
        read_while_writing()
    assert caught.value.filename == str(source)
    assert not (tmp_path / "corpora" / "corpus").exists()


@pytest.mark.parametrize("name", ["part", "deep/part"])
def test_what_is_written_is_named_where_it_fails(name: str, tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=r"corpus: could not be written \(full\); nothing was changed"),
        atomic(tmp_path / "corpus") as fresh,
    ):
        raise OSError(errno.ENOSPC, "full", str(fresh / name))
