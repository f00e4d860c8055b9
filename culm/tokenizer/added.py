"""Tokens that a folder declares next to its `tokenizer.json`, added to it as transformers does.

tokenizer_config.json    added_tokens_decoder: id -> token; pad_token, eos_token, ...: names
added_tokens.json        name -> id, of folders without an added_tokens_decoder
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from culm.config import SettingError
from culm.files import read_json
from culm.tokenizer.chat import token_name

CONFIG, ADDED, DECODER = "tokenizer_config.json", "added_tokens.json", "added_tokens_decoder"
EXTRA = ("extra_special_tokens", "additional_special_tokens")


def add_declared(inner: tokenizers.Tokenizer, settings: Mapping[str, Any], folder: Path) -> None:
    """Add what the settings of a folder declare and its `tokenizer.json` lacks.

    Raises:
        SettingError: a token is declared with another id than it has.
    """
    path = folder / (CONFIG if DECODER in settings else ADDED)
    named = set(special_names(settings))
    for id, token in sorted(_declared(settings, folder, named).items()):
        if token.content in named:
            token.special = True
        inner.add_tokens([token])
        if (found := inner.token_to_id(token.content)) != id:
            raise SettingError(
                f"{path}: {token.content} is declared with id {id}, but tokenizer.json gives it "
                f"{found}; correct the id, or copy the folder again"
            )
    _check(folder / ADDED, inner)
    if DECODER not in settings:
        for token in inner.get_added_tokens_decoder().values():
            if token.content in named and not token.special:
                token.special = True
                inner.add_tokens([token])
    inner.add_tokens(
        [
            AddedToken(name, special=True)
            for name in special_names(settings)
            if inner.token_to_id(name) is None
        ]
    )


def special_names(settings: Mapping[str, Any]) -> Iterator[str]:
    """The names of the special tokens, in the order of the settings.

    Raises:
        SettingError: a list of them is something else.
    """
    for key, value in settings.items():
        if key in EXTRA:
            if value and not isinstance(value, list | dict):
                raise SettingError(f"{CONFIG}: {key}: {value!r} is not a list of tokens; remove it")
            more = value.values() if isinstance(value, dict) else value or ()
        else:
            more = [value] if key.endswith("_token") else ()
        yield from (name for name in map(token_name, more) if isinstance(name, str) and name)


def _declared(settings: Mapping[str, Any], folder: Path, named: set[str]) -> dict[int, AddedToken]:
    """The tokens of the file that lists them, by id."""
    given, name = settings.get(DECODER), CONFIG
    try:
        if given is not None:
            if not isinstance(given, dict):
                raise ValueError(f"{DECODER} is {given!r}, and not an object of ids and tokens")
            return {int(id): AddedToken(**_plain(token)) for id, token in given.items()}
        name = ADDED
        listed = read_json(folder / ADDED) if (folder / ADDED).is_file() else {}
        return {
            int(id): AddedToken(token, special=token in named, normalized=token not in named)
            for token, id in listed.items()
        }
    except (TypeError, ValueError, AttributeError) as error:
        raise SettingError(f"{folder / name}: its tokens cannot be read: {error}") from None


def _plain(token: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in token.items() if key != "__type"}


def _check(path: Path, inner: tokenizers.Tokenizer) -> None:
    """Check the older list, which may be there too: a token has one id."""
    for token, id in (read_json(path) if path.is_file() else {}).items():
        if (found := inner.token_to_id(token)) not in (None, id):
            raise SettingError(
                f"{path}: {token} is declared with id {id}, but elsewhere in the folder it has "
                f"{found}; correct the id, or delete the file"
            )
