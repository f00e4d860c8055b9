"""One rule for every verb that writes: what is there stays, unless --overwrite is given."""

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from typer.testing import CliRunner

from culm.adapt.lora import LoRA
from culm.cli import app
from culm.config import SettingError
from culm.convert import native, peft
from culm.convert.load import load_model
from culm.tokenizer.tokenizer import Tokenizer

OUTPUTS = ("tokenize", "prepare", "quantize", "export", "import")


@pytest.fixture
def line(tmp_path: Path, tokenizer: Tokenizer) -> Callable[[str, Path], list[str]]:
    """The words of a command that writes to a path."""
    text, model, words = tmp_path / "text.txt", tmp_path / "model", tmp_path / "words"
    text.write_text("\n\n".join(f"words of number {n}" for n in range(40)))
    tokenizer.save(words)
    config = tiny.model().config.model_copy(update={"vocabulary": tokenizer.vocabulary})
    native.save(config.build(0), tokenizer, model)

    def words_of(verb: str, out: Path) -> list[str]:
        source, target = str(model), str(out)
        return {
            "tokenize": ["tokenize", "train", str(text), "--vocabulary", "300", "--out", target],
            "prepare": [
                "prepare", str(text), "--split", "paragraphs", "--tokenizer", str(words),
                "--out", target,
            ],
            "quantize": ["quantize", source, target, "--to", "int8", "--device", "cpu"],
            "export": ["export", source, target],
            "import": ["import", source, target],
        }[verb]  # fmt: skip

    return words_of


def go(words: list[str]) -> Exception | None:
    found = CliRunner().invoke(app, words)
    assert found.exception is None or isinstance(found.exception, SettingError), found.exception
    return found.exception


def everything(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): (path.stat().st_ino, path.read_bytes()) for path in files}


@pytest.mark.parametrize("verb", OUTPUTS)
def test_an_older_output(verb: str, line: Callable, tmp_path: Path) -> None:
    words = line(verb, tmp_path / "out")
    assert go(words) is None
    before = everything(tmp_path / "out")
    assert "out: already exists; choose another name, or replace it with --overwrite" in str(
        go(words)
    )
    assert everything(tmp_path / "out") == before
    assert go([*words, "--overwrite"]) is None
    after = everything(tmp_path / "out")
    assert after.keys() == before.keys()
    at_once = [name for name in after if not name.endswith("lineage.json")]  # which comes later
    assert all(after[name][0] != before[name][0] for name in at_once)


@pytest.mark.parametrize("verb", OUTPUTS)
def test_files_of_a_person_stay_with_overwrite(verb: str, line: Callable, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    words = line(verb, tmp_path / "out")
    for more in ([], ["--overwrite"]):
        assert go([*words, *more]) is not None
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_a_single_file(line: Callable, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_text("mine")
    assert "already exists" in str(go(line("export", out)))
    assert out.read_text() == "mine"


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
@pytest.mark.parametrize("verb", ["export", "quantize", "import"])
def test_a_model_is_not_written_onto_itself(verb: str, line: Callable, more: list[str]) -> None:
    words = line(verb, Path("somewhere"))
    words[2] = words[1]
    assert "this is the source model; choose another name" in str(go([*words, *more]))


@pytest.mark.parametrize("verb", ["export", "quantize", "import"])
def test_an_adapter_is_not_written_onto_its_base(verb: str, line: Callable, tmp_path: Path) -> None:
    """The base would be lost."""
    words = line(verb, Path("somewhere"))
    base, words[1], words[2] = words[1], str(tmp_path / "adapter"), words[1]
    model = load_model(base)[0]
    lora = LoRA(rank=2)
    lora.apply(model, 0)
    peft.save(model, lora, tmp_path / "adapter", base)
    before = everything(Path(base))
    for more in ([], ["--overwrite"]):
        assert "this is the base of the adapter" in str(go([*words, *more]))
    assert everything(Path(base)) == before
