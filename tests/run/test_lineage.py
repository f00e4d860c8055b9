"""What a model was made from, and the commands that make it again."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from culm.cli import app
from culm.config import SettingError, parse
from culm.lineage import Lineage, read_lineage
from culm.run.settings import RunConfig
from culm.run.train import train
from culm.verbs.lineage import show_lineage
from culm.verbs.reproduce import SCRIPT, write_reproduction


def run(*words: object) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def stages(tmp_path_factory, stage: Callable[..., dict], corpora: Path) -> Path:
    """text -> tokenizer, tokens -> a base model -> a chat model -> an export."""
    folder = tmp_path_factory.mktemp("lineage")
    (folder / "raw").mkdir()
    for name in ("text.jsonl", "chat.jsonl"):
        (folder / "raw" / name).write_text((corpora / name).read_text())
    raw = folder / "raw"
    run("tokenize", "train", raw / "text.jsonl", "--vocabulary", 300, "--out", folder / "words")
    run("prepare", raw / "text.jsonl", "data.duplicates=keep", "--tokenizer", folder / "words",
        "--out", folder / "corpus", "--held-out", 0, "--quiet")  # fmt: skip
    base = stage("pretrain", steps=2)
    base["model"] |= {"vocabulary": 300}
    base.pop("tokenizer")
    base["data"] = {"prepared": str(folder / "corpus")}
    train(parse(RunConfig, {**base, "folder": str(folder / "base")}))
    chat = stage("sft", steps=2)
    chat |= {"start": str(folder / "base"), "folder": str(folder / "chat")}
    chat["data"]["path"] = str(raw / "chat.jsonl")
    train(parse(RunConfig, chat))
    run("export", folder / "chat", folder / "exported", "--dtype", "float32")
    return folder


def test_a_model_says_what_it_was_made_from(stages: Path, capsys) -> None:
    known = read_lineage(stages / "exported")
    assert known is not None
    assert known.command[:3] == ("export", str(stages / "chat"), str(stages / "exported"))
    chat = known.models["source"]
    assert isinstance(chat, Lineage)
    assert isinstance(chat.models["start"], Lineage)
    assert chat.files == read_lineage(stages / "chat" / "model").files
    show_lineage(str(stages / "exported"))
    shown = capsys.readouterr().out
    order = [
        "culm export", "culm train", "chat", "step 2", "raw/chat.jsonl", "start", "culm train",
        "base", "step 2", "tokens in", "corpus", "raw/text.jsonl",
    ]  # fmt: skip
    place = 0
    for word in order:
        place = shown.index(word, place)
    assert "gone" not in shown
    assert "changed" not in shown


def test_what_is_missing_or_changed_is_marked(stages: Path, capsys) -> None:
    def shown() -> list[str]:
        show_lineage(str(stages / "exported"))
        return [line for line in capsys.readouterr().out.splitlines() if "  it " in line]

    def marks(file: Path) -> list[str]:
        return [line.split("  ")[-1] for line in shown() if file.name in line]

    for file in (stages / "raw" / "text.jsonl", stages / "raw" / "chat.jsonl"):
        kept = file.read_bytes()
        file.write_bytes(kept + b"\n")
        assert marks(file) == ["it was changed"]
        file.unlink()
        assert marks(file) == ["it is gone"]
        file.write_bytes(kept)
    assert not shown()
    weights = stages / "base" / "model" / "model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    show_lineage(str(stages / "chat"))
    assert "model.safetensors was changed" in capsys.readouterr().out
    weights.write_bytes(kept)


def test_the_commands_make_the_same_weights(stages: Path, tmp_path: Path) -> None:
    """Of all stages, from the raw text on."""
    again = tmp_path / "again"
    printed = run("reproduce", stages / "exported", again)
    script = (again / SCRIPT).read_text()
    commands = [line for line in script.splitlines() if line.startswith("culm ")]
    assert [shlex.split(line)[1] for line in commands] == ["prepare", "train", "train", "export"]
    assert all(line in printed for line in commands)
    for line in commands:
        run(*shlex.split(line)[1:])
    last = Path(shlex.split(commands[-1])[3])
    wanted, found = (load_file(one / "model.safetensors") for one in (stages / "exported", last))
    assert wanted.keys() == found.keys()
    assert all(wanted[name].equal(found[name]) for name in wanted)
    read = json.dumps([*read_lineage(last).model_dump(mode="json").values()])
    assert str(again) in read  # made of what was made again, and not of the first models
    with pytest.raises(SettingError, match="already exists"):
        write_reproduction(str(stages / "exported"), str(again))


def test_quantised_and_gguf_models_too(stages: Path, tmp_path: Path) -> None:
    run("export", stages / "base", tmp_path / "base.gguf", "--dtype", "f32")
    known = read_lineage(tmp_path / "base.gguf")
    assert known is not None
    assert list(known.files) == ["base.gguf"]
    run("quantize", stages / "base", tmp_path / "small", "--to", "int8", "--device", "cpu")
    run("reproduce", tmp_path / "small", tmp_path / "again")
    script = (tmp_path / "again" / SCRIPT).read_text()
    assert "culm quantize" in script
    assert "--to int8 --method rtn" in script


def test_a_model_without_a_record_is_refused(stages: Path, tmp_path: Path) -> None:
    for go in (lambda: show_lineage(str(stages / "words")), lambda: write_reproduction(
        str(tmp_path / "none"), str(tmp_path / "out")
    )):  # fmt: skip
        with pytest.raises(SettingError, match=r"has no lineage\.json"):
            go()


def test_models_from_elsewhere_are_read_as_they_are(stages: Path, tmp_path: Path, stage) -> None:
    """Nothing says how they were made; the script says so, and a change is seen."""
    (stages / "exported" / "lineage.json").rename(tmp_path / "kept.json")
    settings = stage("sft", steps=1)
    settings |= {"start": {"hf": str(stages / "exported")}, "folder": str(tmp_path / "run")}
    train(parse(RunConfig, settings))
    (tmp_path / "kept.json").rename(stages / "exported" / "lineage.json")
    printed = run("reproduce", tmp_path / "run", tmp_path / "again")
    assert f"# {stages / 'exported'} is read as it is" in printed
    assert printed.count("culm ") == 1
