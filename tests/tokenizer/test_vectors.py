"""Ids that are stored with a tokenizer, and checked when it is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny

from culm.config import SettingError
from culm.convert import native
from culm.tokenizer.bytes import Bytes
from culm.tokenizer.folder import VECTORS
from culm.tokenizer.tokenizer import Tokenizer
from culm.tokenizer.train import BPE


def test_another_vocabulary_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    kept = path.read_text()
    parts = json.loads(kept)
    parts["model"]["merges"] = parts["model"]["merges"][:-60]
    path.write_text(json.dumps(parts))
    with pytest.raises(SettingError, match=rf"encodes .* as \[.*, and {VECTORS} says"):
        Tokenizer.load(tmp_path)
    path.write_text(kept)
    Tokenizer.load(tmp_path)


def test_another_template_is_refused_until_it_is_meant(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    path = tmp_path / "chat_template.jinja"
    path.write_text(path.read_text().replace("'<|assistant|>'", "'<|assistant|>\\n'"))
    with pytest.raises(SettingError, match=f"delete {VECTORS} if the tokenizer was changed on"):
        Tokenizer.load(tmp_path)
    path.write_text("{{ raise_exception('no') }}")
    with pytest.raises(SettingError, match="as no dialogue"):
        Tokenizer.load(tmp_path)
    (tmp_path / VECTORS).unlink()
    Tokenizer.load(tmp_path)


def test_a_model_folder_has_them(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = tiny.model().config.model_copy(update={"vocabulary": tokenizer.vocabulary})
    native.save(config.build(0), tokenizer, tmp_path / "model")
    native.load(tmp_path / "model")
    path = tmp_path / "model" / VECTORS
    given = json.loads(path.read_text())
    given["texts"][0]["ids"][0] += 1
    path.write_text(json.dumps(given))
    with pytest.raises(SettingError, match="the tokenizer encodes"):
        native.load(tmp_path / "model")
    path.write_text('{"texts": 3}')
    with pytest.raises(SettingError, match=rf"{VECTORS}: broken"):
        native.load(tmp_path / "model")


def test_templates_that_write_the_date(tokenizer: Tokenizer, tmp_path: Path) -> None:
    dated = Tokenizer.load(_saved(tokenizer, tmp_path / "a"))
    dated.template = "{{ strftime_now('%Y') }}" + (tokenizer.template or "")
    dated.save(tmp_path / "b")
    given = json.loads((tmp_path / "b" / VECTORS).read_text())
    assert (len(given["texts"]), given["dialogues"]) == (6, [])


def test_every_kind_gives_them(texts: list[str], tmp_path: Path) -> None:
    plain = Bytes().build()
    plain.save(tmp_path / "bytes")
    assert json.loads((tmp_path / "bytes" / VECTORS).read_text())["dialogues"] == []
    chat = BPE(vocabulary=300).build(texts)
    chat.save(tmp_path / "chat")
    assert len(json.loads((tmp_path / "chat" / VECTORS).read_text())["dialogues"]) == 2


def _saved(tokenizer: Tokenizer, folder: Path) -> Path:
    tokenizer.save(folder)
    return folder
