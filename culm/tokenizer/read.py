"""A tokenizer by its folder, its file or its kind."""

from __future__ import annotations

from pathlib import Path

from culm.config import SettingError
from culm.tokenizer.bytes import Bytes
from culm.tokenizer.folder import JSON, SENTENCEPIECE
from culm.tokenizer.sentencepiece_model import read_model
from culm.tokenizer.tiktoken import from_tiktoken
from culm.tokenizer.tokenizer import Tokenizer

KNOWN = "a folder with a tokenizer, a .model or .tiktoken file, a tokenizer.json, or bytes"
PLACES = ("", "model", "tokenizer")  # in a folder: of a model or tokenizer, and of a run


def read_tokenizer(source: str | Path) -> Tokenizer:
    """The tokenizer in a folder or file, or of a kind that needs no training (`bytes`).

    Raises:
        SettingError: there is none, or it is not readable.
    """
    path = Path(source)
    if path.is_dir():
        places = (path / place for place in PLACES)
        has = (
            place for place in places for name in (JSON, SENTENCEPIECE) if (place / name).is_file()
        )
        return Tokenizer.load(next(has, path))
    if str(source) == "bytes":
        return Bytes(specials=True).build()
    if not path.is_file():
        raise SettingError(f"{source}: there is no such tokenizer; known: {KNOWN}")
    if path.name == JSON:
        return Tokenizer.load(path.parent)
    if path.suffix == ".tiktoken":
        return from_tiktoken(path)
    if ".model" in path.suffixes:
        return Tokenizer(*read_model(path))
    raise SettingError(f"{source}: not a tokenizer; known: {KNOWN}")
