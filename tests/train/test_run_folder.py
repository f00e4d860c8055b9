"""What stands in a run folder: Culm removes what it made, and nothing else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from stages import LORA
from test_bad_input import bytes_in, go

from culm.config import SettingError, parse
from culm.convert.export import quantize
from culm.data.format.document import DocumentFormat
from culm.data.prepare import prepare
from culm.data.prepared import Prepared
from culm.data.settings import DataConfig
from culm.files import read_lines
from culm.source import open_source
from culm.tokenizer.bytes import Bytes
from culm.tokenizer.tokenizer import Tokenizer

FAILING = {"kind": "document", "text": "body"}  # ends a run after its tokenizer was made


@pytest.fixture
def settings(stage: Callable[..., dict], tmp_path: Path) -> dict[str, Any]:
    return {**stage("pretrain"), "folder": str(tmp_path / "run")}


@pytest.mark.parametrize("name", ["data", "tokenizer"])
@pytest.mark.parametrize("inside", ["notes.txt", "manifest.json", "tokenizer.json"])
def test_a_new_run_where_something_else_has_its_name(
    name: str, inside: str, settings: dict[str, Any]
) -> None:
    folder = Path(settings["folder"])
    (folder / name).mkdir(parents=True)
    (folder / name / inside).write_text("{}")
    before = bytes_in(folder)
    with pytest.raises(SettingError, match=rf"run/{name}: Culm did not make this, .* folder="):
        go(settings)
    assert bytes_in(folder) == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "eval.jsonl", "model", "report.md"])
def test_files_that_a_run_would_replace(name: str, settings: dict[str, Any]) -> None:
    folder = Path(settings["folder"])
    folder.mkdir()
    (folder / name).write_text("years of work")
    with pytest.raises(SettingError, match=rf"run/{name}: no run of Culm wrote this"):
        go(settings)
    assert bytes_in(folder) == {name: b"years of work"}


@pytest.mark.parametrize("name", ["checkpoints", "metrics.jsonl", "report.md", "results.json"])
def test_a_file_where_a_run_needs_a_folder_or_the_other_way_round(
    name: str, settings: dict[str, Any]
) -> None:
    go(settings, steps=1)
    path = Path(settings["folder"]) / name
    if path.is_dir():
        shutil.rmtree(path)
        path.write_text("x")
    else:
        path.unlink(missing_ok=True)
        path.mkdir()
    with pytest.raises(SettingError, match=rf"{name}: the run needs this name for a .* folder="):
        go(settings, steps=2)


def test_a_run_yaml_of_somebody_else(settings: dict[str, Any]) -> None:
    folder = Path(settings["folder"])
    folder.mkdir()
    (folder / "run.yaml").write_text("image: python")
    with pytest.raises(SettingError, match=r"run\.yaml: not the settings of a run"):
        go(settings)


def test_a_run_needs_a_folder_of_its_own(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingError, match="file: a file; choose another name"):
        go({**settings, "folder": str(tmp_path / "file")})
    with pytest.raises(SettingError, match=r"folder: .* holds the text; use another folder"):
        go({**settings, "data": {"path": settings["folder"]}})


def test_fewer_steps_than_were_trained(settings: dict[str, Any]) -> None:
    go(settings, steps=3)
    before = bytes_in(Path(settings["folder"]))
    with pytest.raises(SettingError, match=r"train\.steps: 2, but .* was trained for 3"):
        go(settings, steps=2)
    assert bytes_in(Path(settings["folder"])) == before


def test_a_damaged_line_of_metrics_costs_that_line_only(
    settings: dict[str, Any], capsys: pytest.CaptureFixture
) -> None:
    go(settings, steps=4)
    path = Path(settings["folder"]) / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], "[5]\n", *lines[2:]]))
    go(settings, steps=5)
    assert [line["step"] for line in read_lines(path)] == [1, 3, 4, 5]
    assert "metrics.jsonl: 1 damaged lines are left out" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_changed_setting_leaves_what_culm_did_not_make(settings: dict[str, Any]) -> None:
    folder = Path(settings["folder"])
    with pytest.raises(SettingError, match="no text in 'body'"):
        go({**settings, "data": {**settings["data"], "format": FAILING}})
    (folder / "data").mkdir()
    (folder / "data" / "thesis.txt").write_text("years of work")
    (folder / "tokenizer" / "notes.txt").write_text("mine")
    before = bytes_in(folder)
    for name in ("tokenizer/notes.txt", "data/thesis.txt"):
        with pytest.raises(SettingError, match="Culm did not make this"):
            go(settings)
        assert bytes_in(folder) == before
        (folder / name).unlink()
        before.pop(name)
    (folder / "data").rmdir()
    assert go(settings).finished


def test_a_corpus_that_was_prepared_beforehand_stays(
    settings: dict[str, Any], corpora: Path
) -> None:
    """Also where it stands in the run folder itself, and a setting changes before training."""
    place = Path(settings["folder"]) / "data"
    place.parent.mkdir()
    tokenizer = Bytes(specials=True).build()
    prepare(open_source(corpora / "text.jsonl"), DocumentFormat(), tokenizer, place)
    before = bytes_in(place)
    settings["data"] = {"prepared": str(place)}
    with pytest.raises(SettingError, match=r"train\.context: 1 leaves nothing"):
        go(settings, context=1)
    assert go({**settings, "seed": 1}).finished
    assert bytes_in(place) == before


def test_an_empty_corpus_leaves_no_tokenizer(settings: dict[str, Any], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(" \n")
    settings["data"] = {"path": str(text), "split": "paragraphs"}
    settings["tokenizer"] = {"kind": "bpe", "vocabulary": 262}
    for _ in range(2):
        with pytest.raises(SettingError, match=r"text\.txt: nothing to read"):
            go(settings)
        assert not (tmp_path / "run" / "tokenizer").exists()
    text.write_text("\n\n".join(f"{word} and more" * 9 for word in ("one", "two", "three")))
    assert go(settings).finished


def test_a_tokenizer_learns_from_the_field_that_is_asked_for(settings: dict[str, Any]) -> None:
    settings["tokenizer"] = {"kind": "bpe", "vocabulary": 262}
    settings["data"]["format"] = FAILING
    with pytest.raises(SettingError, match=r"line 1: no text in 'body'; it has text \(text\)"):
        go(settings)
    assert not (Path(settings["folder"]) / "tokenizer").exists()


def test_an_end_that_is_never_learned(stage: Callable[..., dict], tmp_path: Path) -> None:
    answer = [{"prompt": "x", "completion": "y" * 200}, {"prompt": "z", "completion": "w" * 200}]
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in answer))
    settings = {**stage("sft", context=32), "folder": str(tmp_path / "run")}
    settings["data"] = {"path": str(path), "format": "chat"}
    with pytest.raises(SettingError, match=r"train\.context: no row learns the end of an answer"):
        go(settings)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_flipped_bit_in_a_shard(settings: dict[str, Any]) -> None:
    settings["train"]["steps"] = 2
    go(settings)
    shard = Path(settings["folder"]) / "data" / "train" / "tokens-00000.npy"
    data = bytearray(shard.read_bytes())
    data[-2] ^= 1
    shard.write_bytes(data)
    Prepared.open(shard.parents[1])  # nothing that its size would tell
    with pytest.raises(SettingError, match=r"tokens-00000\.npy: changed .*to prepare it again"):
        go(settings, steps=4)


def test_the_questions_of_tasks_follow_the_seed(stage: Callable[..., dict], tmp_path: Path) -> None:
    found = []
    for seed in (0, 1, 1):
        task = {"kind": "letters", "name": "count", "operation": "count", "longest": 9}
        settings = {**stage("sft", steps=1), "seed": seed}
        settings["data"] = {"tasks": [task], "questions": 40, "format": "chat"}
        settings["folder"] = str(tmp_path / str(len(found)))
        go(settings)
        found.append(bytes_in(Path(settings["folder"]) / "data" / "train"))
    assert found[0] != found[1]
    assert found[1] == found[2]


@pytest.mark.parametrize(("objective", "format"), [("preference", "chat"), ("next_token", "pair")])
@pytest.mark.parametrize("prepared", [False, True])
def test_an_objective_that_does_not_learn_from_the_data(
    objective: str, format: str, prepared: bool, stage: Callable[..., dict], tmp_path: Path
) -> None:
    """Sums over pairs divided by tokens, or the other way round, would train to nonsense."""
    settings = stage("dpo" if format == "pair" else "sft", objective=objective)
    message = f"train.objective: {objective} learns from .*, and data.format={format} gives"
    if prepared:
        corpus = tmp_path / "corpus"
        data = parse(DataConfig, settings["data"])
        tokenizer = Tokenizer.load(Path(settings["start"]) / "model")
        prepare(data.open(), data.format, tokenizer, corpus, 0)
        settings["data"] = {"prepared": str(corpus)}
        message = rf"train\.objective: {objective} learns from .*corpus holds .* format {format}"
    with pytest.raises(SettingError, match=message):
        go({**settings, "folder": str(tmp_path / "run")})


def test_quantised_weights_need_an_adapter(stage: Callable[..., dict], tmp_path: Path) -> None:
    settings = {**stage("sft"), "folder": str(tmp_path / "run")}
    quantize(settings["start"], tmp_path / "int8", "int8")
    settings["start"] = str(tmp_path / "int8")
    with pytest.raises(SettingError, match=r"train\.adapter: quantised weights cannot be trained"):
        go(settings)
    settings["train"] = {**settings["train"], "adapter": LORA}
    assert go(settings).finished


def test_rows_are_no_longer_than_the_model_knows(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=r"train\.context: 65 is more than the model's context"):
        go(settings, context=65)


def test_a_run_of_before_a_setting_was_new_goes_on(
    settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    go({**settings, "train": {**settings["train"], "steps": 2}})
    path = Path(settings["folder"]) / "run.yaml"
    older = yaml.safe_load(path.read_text())
    del older["data"]["turns"], older["train"]["activation_checkpointing"]
    path.write_text(yaml.safe_dump(older))
    capsys.readouterr()
    assert go(settings).steps == 3
    told = " ".join(capsys.readouterr().err.split())
    assert f"Resuming {settings['folder']} after step 2." in told
    path.write_text(yaml.safe_dump({**older, "colour": "red"}))
    with pytest.raises(SettingError, match=r"run\.yaml: colour: no such setting.* folder="):
        go(settings)
