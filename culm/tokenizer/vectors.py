"""Texts and dialogues with their ids, stored with a tokenizer and checked when it is loaded.

A library that splits or merges otherwise, or a file that was changed, is found before a model reads
ids that it was not trained with.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from culm.config import SettingError
from culm.files import read_json, write_json
from culm.tokenizer.chat import Chat
from culm.tokenizer.folder import VECTORS

TEXTS = (
    "Hello, world! It's 3.14 or 12345 + 67.",
    "  def f(x):\n\treturn x ** 2  # squared\r\n\n",
    "Déjà vu: 東京, Москва, क्षि, \U0001f642 e\u0301 \ufb01",
    "<|user|><s>[INST] names of special tokens as letters </s>",
    "a" * 40 + "   " + "=" * 20,
)
DIALOGUES = (
    [{"role": "user", "content": "What is 17 + 25?"}],
    [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello! "},
        {"role": "user", "content": "Bye\n"},
    ],
)
CLOCK = "strftime_now"  # a template with this writes the date, so its ids change


class Encoder(Protocol):
    """What is needed of a tokenizer (`culm.tokenizer.tokenizer.Tokenizer`)."""

    template: str | None
    specials: dict[str, int]

    @property
    def chat(self) -> Chat: ...

    def encode(self, text: str, specials: bool = False) -> list[int]: ...


def write_vectors(tokenizer: Encoder, folder: Path) -> None:
    """Write the ids of the texts, of all special tokens, and of dialogues that the chat template
    renders.
    """
    marked = "".join(tokenizer.specials)
    texts = [{"text": text, "ids": tokenizer.encode(text)} for text in TEXTS]
    more = [{"text": marked, "specials": True, "ids": tokenizer.encode(marked, specials=True)}]
    dialogues = []
    if tokenizer.template is not None and CLOCK not in tokenizer.template:
        for messages in DIALOGUES:
            ids = _prompt(tokenizer, messages)
            if ids is not None:
                dialogues.append({"messages": messages, "ids": ids})
    write_json(folder / VECTORS, {"texts": texts + more, "dialogues": dialogues})


def check_vectors(tokenizer: Encoder, folder: Path) -> None:
    """Check that the tokenizer gives the ids in its folder; an older folder has none.

    Raises:
        SettingError: it gives others.
    """
    path = folder / VECTORS
    if not path.is_file():
        return
    try:
        given = read_json(path)
        texts = [(one["text"], one.get("specials", False), one["ids"]) for one in given["texts"]]
        dialogues = [(one["messages"], one["ids"]) for one in given["dialogues"]]
    except (KeyError, TypeError) as error:
        raise SettingError(f"{path}: broken: {error}; copy the folder again") from None
    for text, specials, ids in texts:
        _compare(path, text, ids, tokenizer.encode(text, specials=specials))
    for messages, ids in dialogues:
        found = _prompt(tokenizer, messages) if tokenizer.template is not None else None
        _compare(path, messages, ids, found)


def _prompt(tokenizer: Encoder, messages: Sequence[dict[str, Any]]) -> list[int] | None:
    """Ids of a dialogue; None if the template refuses it."""
    try:
        return tokenizer.chat.prompt(messages)
    except ValueError:
        return None


def _compare(path: Path, given: object, wanted: list[int], found: list[int] | None) -> None:
    if found != wanted:
        what = "as no dialogue" if found is None else f"as {_short(found)}"
        raise SettingError(
            f"{path.parent}: the tokenizer encodes {given!r} {what}, and {path.name} says "
            f"{_short(wanted)}; copy the folder again and use the versions of its libraries that "
            f"wrote it, or delete {path.name} if the tokenizer was changed on purpose"
        )


def _short(ids: list[int]) -> str:
    return f"{ids[:12]}" + (f" ... ({len(ids)} ids)" if len(ids) > 12 else "")
