"""Encoding the middle of a text, and names of special tokens as letters."""

from __future__ import annotations

import json
from typing import Any

import tokenizers

LEADING = r"\A +"  # the expression for spaces before a text, where a tokenizer removes them


def without_prefix(written: str) -> str | None:
    """The JSON of a tokenizer, changed to add no space before a text; None if it adds none.

    Sentencepiece adds one, so that the first word is like any other: it reads "a cat" as "▁a▁cat".
    The middle of a text must not get one.
    """
    parts = json.loads(written)
    changed = {name: _plain(parts[name]) for name in ("normalizer", "pre_tokenizer")}
    if changed.items() <= parts.items():
        return None
    return json.dumps(parts | changed, ensure_ascii=False)


def without_specials(written: str) -> tokenizers.Tokenizer:
    """The tokenizer to which the names of special tokens are letters."""
    changed = _without_names(written)
    inner = tokenizers.Tokenizer.from_str(written if changed is None else changed)
    inner.encode_special_tokens = True
    return inner


def _without_names(written: str) -> str | None:
    """The JSON of a tokenizer, changed so that no text gives a special token.

    A unigram model finds the names of special tokens in a text as those of any other token. None
    for other models, whose library does not look for them if it is asked not to.
    """
    parts = json.loads(written)
    if parts["model"]["type"] != "Unigram":
        return None
    names = {token["content"] for token in parts["added_tokens"] if token["special"]}
    added = [token for token in parts["added_tokens"] if not token["special"]]
    model = parts["model"]
    vocabulary = [["" if name in names else name, score] for name, score in model["vocab"]]
    changed = {"added_tokens": added, "model": {**model, "vocab": vocabulary}}
    return json.dumps(parts | changed | {"post_processor": None}, ensure_ascii=False)


def _plain(part: Any) -> Any:
    match part:
        case {"type": "Prepend"}:
            return None
        case {"type": "Replace", "pattern": {"Regex": pattern}} if pattern == LEADING:
            return None
        case {"type": "Metaspace"}:
            return {**part, "prepend_scheme": "never"}
        case {"type": "ByteLevel"}:
            return {**part, "add_prefix_space": False}
        case {"type": "Sequence", "normalizers": inner}:
            return {**part, "normalizers": [p for p in map(_plain, inner) if p is not None]}
        case {"type": "Sequence", "pretokenizers": inner}:
            return {**part, "pretokenizers": list(map(_plain, inner))}
    return part
