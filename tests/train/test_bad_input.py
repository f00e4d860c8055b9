"""What goes wrong in a run: one sentence that names the place and the remedy; nothing is lost."""

import errno
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from stages import bytes_in, go

import culm.files
import culm.run.train
from culm.adapt.heads import with_scalar_head
from culm.atomic import InUseError, atomic
from culm.config import SettingError
from culm.convert import native
from culm.files import read_lines
from culm.model.attention.gqa import GQA
from culm.model.transformer import TransformerConfig
from culm.run.settings import read_run
from culm.run.train import train
from culm.tokenizer.bytes import Bytes
from culm.train.checkpoint.folder import steps_in
from culm.train.checkpoint.tensors import CheckpointError
from culm.train.guard import locked
from culm.train.judge import TrainingError


def test_a_checkpoint_of_another_shape(stage: Callable[..., dict], tmp_path: Path) -> None:
    settings = {**stage("sft", steps=2), "folder": str(tmp_path / "run")}
    model, tokenizer = native.load(Path(settings["start"]) / "model")
    settings["start"] = str(tmp_path / "base")
    native.save(model, tokenizer, tmp_path / "base")
    go(settings)
    narrower = model.config.model_copy(update={"width": 16}).build(0)
    native.save(narrower, tokenizer, tmp_path / "base")
    with pytest.raises(
        CheckpointError, match=r"shape .* in the run, .* in the checkpoint: .*step-2"
    ):
        go(settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 5}, r"seed: 5, but .*run was trained with 0; give a new run another folder"),
        ({"data": {"path": "elsewhere.jsonl", "format": "chat"}}, r"data\.path.*elsewhere.*but"),
        ({"start": "runs/other"}, r"start: 'runs/other', but"),
        ({"train": {"batch_size": 6}}, r"train\.batch_size: 6, but .* trained with 4"),
        ({"train": {"optimizer": "muon"}}, r"train\.optimizer\.kind: 'muon', but .*'adamw'"),
    ],
)
def test_other_settings_in_a_trained_folder(
    change: dict[str, Any], message: str, begun: dict[str, Any]
) -> None:
    before = bytes_in(Path(begun["folder"]))
    changed = {**begun, **change, "train": {**begun["train"], **change.get("train", {})}}
    with pytest.raises(SettingError, match=message):
        go(changed)
    assert bytes_in(Path(begun["folder"])) == before


def test_a_corpus_that_changed(begun: dict[str, Any]) -> None:
    folder = Path(begun["folder"])
    records = [json.loads(line) for line in Path(begun["data"]["path"]).read_text().splitlines()]
    shutil.rmtree(folder / "data")
    shorter = folder.parent / "chat.jsonl"
    shorter.write_text("".join(json.dumps(record) + "\n" for record in records[:20]))
    text = (folder / "run.yaml").read_text().replace(begun["data"]["path"], str(shorter))
    (folder / "run.yaml").write_text(text)
    with pytest.raises(SettingError, match="trained on other data, or in another order"):
        go({**begun, "data": {**begun["data"], "path": str(shorter)}})


def test_settings_may_change_before_anything_was_trained(
    stage: Callable[..., dict], tmp_path: Path, corpora: Path
) -> None:
    settings = {**stage("pretrain"), "folder": str(tmp_path / "run")}
    settings["tokenizer"] = {"kind": "bpe", "vocabulary": 262}
    with pytest.raises(SettingError, match="no text in 'body'"):
        go(
            {
                **settings,
                "data": {**settings["data"], "format": {"kind": "document", "text": "body"}},
            }
        )
    assert not (tmp_path / "run" / "data").exists()
    assert go(settings).finished


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_what_a_killed_process_left_is_removed(begun: dict[str, Any]) -> None:
    checkpoints = Path(begun["folder"]) / "checkpoints"
    child = os.fork()
    if child == 0:
        with atomic(checkpoints / "step-5") as fresh:
            fresh.mkdir()
            (fresh / "state.safetensors").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    mine = checkpoints / ".step-6.123.new"
    mine.mkdir()
    assert len(list(checkpoints.glob(".*"))) == 2
    go(begun, steps=6)
    assert list(checkpoints.glob(".*")) == [mine]
    assert steps_in(Path(begun["folder"])) == [4, 6]


def test_a_second_process_in_the_folder(begun: dict[str, Any]) -> None:
    with (
        locked(Path(begun["folder"])),
        pytest.raises(InUseError, match=r"run: another process is running here"),
    ):
        go(begun, steps=6)


def test_a_loss_that_is_not_finite(begun: dict[str, Any]) -> None:
    folder = Path(begun["folder"])
    before = bytes_in(folder / "checkpoints"), bytes_in(folder / "model")
    wild = {"kind": "adamw", "rate": 1e30}
    with pytest.raises(
        TrainingError, match=r"step \d: the loss is .*; lower train\.optimizer\.rate"
    ):
        go(begun, steps=9, optimizer=wild, checkpoint={"every_steps": 9})
    assert (bytes_in(folder / "checkpoints"), bytes_in(folder / "model")) == before
    assert go(begun, steps=6).finished


def test_ids_beyond_the_vocabulary(begun: dict[str, Any]) -> None:
    manifest = Path(begun["folder"]) / "data" / "manifest.json"
    values = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**values, "vocabulary": 300}))
    with pytest.raises(SettingError, match=r"manifest\.json: changed since it was written"):
        go(begun, steps=6)
    del values["sha256"]  # as somebody who writes one has none
    manifest.write_text(json.dumps({**values, "vocabulary": 300}))
    with pytest.raises(
        SettingError, match=r"data: token ids up to 299, but the model's vocabulary is 262"
    ):
        go(begun, steps=6)
    manifest.write_text(json.dumps({**values, "vocabulary": 100}))
    with pytest.raises(SettingError, match=r"holds token \d+, beyond its vocabulary of 100"):
        go(begun, steps=6)


def test_grpo_needs_whole_groups(stage: Callable[..., dict], tmp_path: Path) -> None:
    settings = {**stage("grpo", batch_size=10), "folder": str(tmp_path / "run")}
    with pytest.raises(
        ValueError, match=r"train\.batch_size: 10 is not a multiple of train\.rollout\.group=4"
    ):
        go(settings)


@pytest.mark.parametrize("where", ["reward", "critic"])
@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ({"vocabulary": 300}, r"train\.\S+: the tokenizer of \S+ differs from that of the policy"),
        ({"context": 8}, r"a dialogue has \d+ tokens, and the context of .* is 8"),
    ],
)
def test_a_reward_model_that_cannot_read_the_policy(
    where: str, judge: dict[str, int], message: str, stage: Callable[..., dict], tmp_path: Path
) -> None:
    settings, path = stage("ppo"), str(tmp_path / "judge")
    _, tokenizer = native.load(Path(settings["start"]) / "model")
    if "vocabulary" in judge:
        tokenizer = Bytes().build()
    model = TransformerConfig(
        **{"vocabulary": 262, "width": 32, "layers": 1, "context": 64, **judge},
        attention=(GQA(heads=2),), head="scalar", tied=False,
    )  # fmt: skip
    native.save(model.build(0), tokenizer, Path(path))
    if where == "critic":
        settings["train"]["objective"]["critic"] = path
    else:
        settings["train"]["reward"] = {"kind": "model", "path": path}
    with pytest.raises(SettingError, match=message):
        go({**settings, "folder": str(tmp_path / "run")})


@pytest.mark.parametrize("name", ["sft", "dpo", "grpo", "ppo"])
def test_a_language_model_from_a_reward_model(
    name: str, stage: Callable[..., dict], tmp_path: Path
) -> None:
    settings = stage(name)
    model, tokenizer = native.load(Path(settings["start"]) / "model")
    with_scalar_head(model, 0)
    native.save(model, tokenizer, tmp_path / "judge")
    settings |= {"start": str(tmp_path / "judge"), "folder": str(tmp_path / "run")}
    with pytest.raises(SettingError, match="trains a language model, and the model has a scalar"):
        go(settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.setps=3"], "culm: train.setps: no such setting; did you mean 'steps'?"),
        (
            ["start=runs/none/x"],
            "culm: start: runs/none/x: there is no such file or folder; train that first",
        ),
        (["data.path=none.jsonl"], "none.jsonl"),
    ],
)
def test_the_command_says_one_sentence(
    settings: list[str], message: str, begun: dict[str, Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    from culm.cli import main

    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({**begun, "folder": str(tmp_path / "new")}))
    monkeypatch.setattr(sys, "argv", ["culm", "train", str(file), *settings])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr().err
    assert stopped.value.code == 78
    assert message in said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "new" / "checkpoints").exists()


def test_run_yaml_is_a_run_file(begun: dict[str, Any], tmp_path: Path) -> None:
    written = Path(begun["folder"]) / "run.yaml"
    config, _ = read_run(str(written), [f"folder={tmp_path / 'again'}"])
    train(config)
    lines = [read_lines(f / "metrics.jsonl") for f in (Path(begun["folder"]), tmp_path / "again")]
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]]


@pytest.mark.parametrize("place", ["model/model.json", "adapter/adapter_config.json"])
def test_files_in_the_way_of_a_model_are_found_before_the_first_step(
    place: str, stage: Callable[..., dict], tmp_path: Path
) -> None:
    settings = {**stage("sft", adapter=True, steps=2), "folder": str(tmp_path / "run")}
    go(settings)
    (tmp_path / "run" / place).unlink()
    with pytest.raises(SettingError, match="holds other files, which would be lost"):
        go(settings, steps=4)
    assert len(read_lines(tmp_path / "run" / "metrics.jsonl")) == 2
    shutil.rmtree((tmp_path / "run" / place).parent)  # the remedy
    assert go(settings, steps=4).finished


@pytest.mark.parametrize(
    "place", ["checkpoints/step-4/state.safetensors", "data/train/tokens-00000.npy"]
)
def test_what_may_not_be_read_is_not_called_damaged(
    place: str, begun: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the advice would be to delete a good checkpoint or corpus."""
    wanted = Path(begun["folder"]) / place

    def refused(path: Path) -> None:
        if Path(path) == wanted:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

    real_digest, real_map = culm.files.sha256, np.load
    monkeypatch.setattr(culm.files, "sha256", lambda path: refused(path) or real_digest(path))
    monkeypatch.setattr(np, "load", lambda path, **more: refused(path) or real_map(path, **more))
    with pytest.raises((CheckpointError, SettingError), match="may not be read") as raised:
        go(begun, steps=6)
    assert "delete" not in str(raised.value)
