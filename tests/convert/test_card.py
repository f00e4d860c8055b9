"""The card of a model says what it was trained on, in every format, and leads nowhere wrong."""

import re
from pathlib import Path

import pytest
import yaml

from culm.convert import gguf, native
from culm.convert.card import card, read_trained_on
from culm.convert.export import export, quantize
from culm.convert.load import load_model
from culm.verbs.import_model import import_model

STAGES = ("plain text (books)", "dialogues (a: b.jsonl, #2)")


@pytest.fixture
def folder(tiny, tokenizer, tmp_path) -> Path:
    model = tiny()
    model.trained_on = STAGES
    native.save(model, tokenizer, tmp_path / "model")
    return tmp_path / "model"


def test_stages_travel_with_the_model(folder: Path, tmp_path: Path) -> None:
    quantize(folder, tmp_path / "int8", "int8")
    for name in ("hf", "model.gguf"):
        export(folder, tmp_path / name)
    import_model(tmp_path / "hf", tmp_path / "again")
    import_model(tmp_path / "model.gguf", tmp_path / "from-gguf")
    for name in ("model", "int8", "hf", "model.gguf", "again", "from-gguf"):
        assert load_model(tmp_path / name)[0].trained_on == STAGES, name
    for name in ("model", "int8", "hf", "again", "from-gguf"):
        text = (tmp_path / name / "README.md").read_text()
        assert "It was trained on plain text (books), then on dialogues (a: b.jsonl, #2)." in text
        assert 'model.chat("Who are you?")' in text
        assert "base model" not in text
        assert yaml.safe_load(text.split("---\n")[1])["trained_on"] == list(STAGES)


def test_a_base_model_says_so(tiny) -> None:
    model = tiny()
    model.trained_on = STAGES[:1]
    text = card(model, "base")
    assert (
        "This is a base model: it continues a text.\nIt was trained on plain text (books)." in text
    )
    assert 'model.generate("Once upon a time"' in text
    model.trained_on = ()
    assert "trained" not in card(model, "unknown")


def test_a_card_has_no_link(folder: Path, tmp_path: Path) -> None:
    """It is read on other sites, where a path of this repository leads nowhere."""
    export(folder, tmp_path / "hf")
    for path in (folder, tmp_path / "hf"):
        assert not re.search(r"https?:|\]\(|<\w+>", (path / "README.md").read_text())


@pytest.mark.parametrize(
    "text",
    [
        "", "# Title\n", "---\nlicense: mit\n---\n# Title", "---\nnever closed", "---\n: [\n---\n",
        "---\ntrained_on: books\n---\n", "---\ntrained_on: [1, {a: b}]\n---\n", "---\n- a\n---\n",
    ],
)  # fmt: skip
def test_the_card_of_somebody_else_says_nothing(text: str, tmp_path: Path) -> None:
    assert read_trained_on(tmp_path) == ()
    (tmp_path / "README.md").write_text(text)
    assert read_trained_on(tmp_path) == ()


def test_a_file_of_llama_cpp_describes_it(folder: Path, tmp_path: Path) -> None:
    export(folder, tmp_path / "model.gguf")
    fields, _ = gguf.file.read_parts(tmp_path / "model.gguf")
    assert fields["general.description"].startswith("Trained on plain text (books), then on")
