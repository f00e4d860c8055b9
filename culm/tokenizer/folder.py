"""The files of a tokenizer, next to `tokenizer.json`."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers

from culm.config import SettingError
from culm.files import read_json, refuse_pointer
from culm.log import say
from culm.tokenizer.added import CONFIG, DECODER, EXTRA, add_declared
from culm.tokenizer.chat import token_name, token_names
from culm.tokenizer.generation import GENERATION, MODEL, read_generation
from culm.tokenizer.sentencepiece_model import add_begin, read_model
from culm.tokenizer.template_files import (
    CHAT,
    DEFAULT,
    MORE,
    named,
    read_templates,
    write_templates,
)

MARKS = "special_tokens_map.json"
JSON, SENTENCEPIECE = "tokenizer.json", "tokenizer.model"
VECTORS = "tokenizer_vectors.json"
FILES = {JSON, CONFIG, MARKS, CHAT, MORE, GENERATION, VECTORS}  # of a folder that we write


class Parts(NamedTuple):
    """What `Tokenizer` is built of."""

    inner: tokenizers.Tokenizer
    settings: dict[str, Any]
    template: str | None
    stops: list[int]
    generation: dict[str, Any]


def read_parts(folder: Path) -> Parts:
    """The tokenizer of a folder, with all that the files next to `tokenizer.json` say about it.

    Raises:
        SettingError: naming the file that is missing, broken, or contradicts another.
    """
    settings, generation = read_settings(folder), read_generation(folder)
    if not (folder / JSON).is_file() and (folder / SENTENCEPIECE).is_file():
        inner, marks = read_model(folder / SENTENCEPIECE)
        settings = marks | settings
        # Tokenizers of this class add it unless they say otherwise.
        adds = settings.get("add_bos_token", _is_llama(settings))
        if adds and (begin := token_name(settings.get("bos_token"))):
            add_begin(inner, begin)
    else:
        inner = read_inner(folder)
    add_declared(inner, settings, folder)
    stops = read_stops(folder, settings, generation, inner)
    templates = read_templates(folder, settings)
    settings = {key: value for key, value in settings.items() if key != "chat_template"}
    settings |= named(templates)
    return Parts(inner, settings, templates.get(DEFAULT), stops, generation)


def _is_llama(settings: Mapping[str, Any]) -> bool:
    return str(settings.get("tokenizer_class")).startswith("LlamaTokenizer")


def write_settings(folder: Path, settings: Mapping[str, Any], template: str | None) -> None:
    """Write the settings, the names of the special tokens, and the chat templates."""
    write_templates(folder, template, settings)
    settings = {key: value for key, value in settings.items() if key != "chat_template"}
    for name, values in ((CONFIG, settings), (MARKS, _marks(settings))):
        text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
        (folder / name).write_text(text, encoding="utf-8")


def read_inner(folder: Path) -> tokenizers.Tokenizer:
    """What `tokenizer.json` holds.

    Raises:
        SettingError: there is no such file, or it is not a tokenizer.
    """
    path = folder / JSON
    if not path.is_file():
        raise SettingError(f"{folder}: contains no {JSON}")
    refuse_pointer(path)
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except BaseException as error:  # a panic of its Rust code is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise SettingError(f"{path}: not a readable tokenizer: {error}") from None


def read_settings(folder: Path) -> dict[str, Any]:
    """What `tokenizer_config.json` holds; nothing where there is no such file.

    Names of special tokens come from `special_tokens_map.json` where the file is one of before
    2023, without `added_tokens_decoder`, as in transformers.
    """
    settings = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    if DECODER in settings or not (folder / MARKS).is_file():
        return settings
    return settings | _marks(read_json(folder / MARKS))


def _marks(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The special tokens among the settings."""
    named = {key: settings[key] for key in token_names(settings)}
    return named | {key: settings[key] for key in EXTRA if settings.get(key)}


def read_stops(
    folder: Path,
    settings: Mapping[str, Any],
    generation: Mapping[str, Any],
    inner: tokenizers.Tokenizer,
) -> list[int]:
    """Ids that end generation: the first list that a file declares, or none.

    An id that the tokenizer does not have is ignored with a warning.

    Raises:
        SettingError: an id is not an integer.
    """
    known = set(inner.get_vocab(with_added_tokens=True).values())
    name = GENERATION if (folder / GENERATION).is_file() else MODEL
    ids = _ids(generation, "eos_token_id", folder / name, known)
    return ids or _ids(settings, "stop_ids", folder / CONFIG, known)


def _ids(settings: Mapping[str, Any], name: str, path: Path, known: Collection[int]) -> list[int]:
    """A setting that is one id, a list of ids, or missing; without unknown ids."""
    given = settings.get(name)
    ids = given if isinstance(given, list) else [] if given is None else [given]
    if odd := [one for one in ids if type(one) is not int]:
        raise SettingError(f"{path}: {name}: {odd[0]!r} is not a token id")
    if unknown := [one for one in ids if one not in known]:
        say(f"{path}: {name}: the tokenizer has no token {unknown[0]}; it is ignored.")
    return [one for one in ids if one in known]
