"""The files of a tokenizer, next to `tokenizer.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from culm.config import SettingError
from culm.files import read_json
from culm.log import say

CONFIG, MARKS, CHAT = "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"
FILES = {"tokenizer.json", CONFIG, MARKS, CHAT}  # of a folder that we write


def write_settings(folder: Path, settings: Mapping[str, Any], template: str | None) -> None:
    """Write the settings, the names of the special tokens, and the chat template."""
    settings = {key: value for key, value in settings.items() if key != "chat_template"}
    marks = {key: value for key, value in settings.items() if key.endswith("_token")}
    for name, values in ((CONFIG, settings), (MARKS, marks)):
        text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
    if template is not None:
        (folder / CHAT).write_text(template, encoding="utf-8")


def read_inner(folder: Path) -> tokenizers.Tokenizer:
    """What `tokenizer.json` holds.

    Raises:
        SettingError: there is no such file, or it is not a tokenizer.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise SettingError(f"{folder}: contains no tokenizer.json")
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except BaseException as error:  # a panic of its Rust code is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise SettingError(f"{path}: not a readable tokenizer: {error}") from None


def read_settings(folder: Path) -> dict[str, Any]:
    """What `tokenizer_config.json` holds; nothing where there is no such file."""
    return read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}


def read_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The chat template, from its own file or from the settings."""
    path = folder / CHAT
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several, by name
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template


def read_stops(folder: Path, settings: Mapping[str, Any], inner: tokenizers.Tokenizer) -> list[int]:
    """Ids that end generation, by the folder's `generation_config.json` and settings.

    An id that the tokenizer does not have is ignored with a warning.

    Raises:
        SettingError: an id is not an integer.
    """
    path = folder / "generation_config.json"
    generation = read_json(path) if path.is_file() else {}
    stops = _ids(generation, "eos_token_id", path, inner)
    return stops + _ids(settings, "stop_ids", folder / CONFIG, inner)


def _ids(
    settings: Mapping[str, Any], name: str, path: Path, inner: tokenizers.Tokenizer
) -> list[int]:
    """A setting that is one id, a list of ids, or missing; without unknown ids."""
    given = settings.get(name)
    ids = given if isinstance(given, list) else [] if given is None else [given]
    if odd := [one for one in ids if type(one) is not int]:
        raise SettingError(f"{path}: {name}: {odd[0]!r} is not a token id")
    known = set(inner.get_vocab(with_added_tokens=True).values()) if ids else set()
    if unknown := [one for one in ids if one not in known]:
        say(f"{path}: {name}: the tokenizer has no token {unknown[0]}; it is ignored.")
    return [one for one in ids if one in known]
