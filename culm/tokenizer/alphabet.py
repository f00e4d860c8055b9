"""Bytes as printable characters: the names of byte-level BPE tokens (GPT-2's convention).

A printable byte is its own character; the others are characters from U+0100 on, so that every token
has a visible name: " the" is written "Ġthe".
"""

from __future__ import annotations

import json
import re

import tokenizers

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = sorted(set(range(256)) - set(_PRINTABLE))
BYTES = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(0x100 + place): byte for place, byte in enumerate(_HIDDEN)
}
CHARACTERS = {byte: character for character, byte in BYTES.items()}


def written(token: bytes) -> str:
    """The name of the token for these bytes."""
    return "".join(CHARACTERS[byte] for byte in token)


def spelt(name: str) -> bytes:
    """The bytes of the token with this name; the inverse of `written`."""
    return bytes(BYTES[character] for character in name)


def spellings(inner: tokenizers.Tokenizer) -> list[bytes]:
    """The bytes of each token id; none for special tokens and for ids without a token.

    Reads byte-level vocabularies, those of sentencepiece (spaces as U+2581, bytes as <0x0A>), and
    WordPiece (a piece inside a word as ##ing).
    """
    names = inner.get_vocab(with_added_tokens=True)
    added = inner.get_added_tokens_decoder()
    decoder = json.dumps(json.loads(inner.to_str())["decoder"])
    byte_level, inside = "ByteLevel" in decoder, "##" if "WordPiece" in decoder else None
    table = [b""] * (max(names.values(), default=-1) + 1)
    for name, token in names.items():
        if token in added:
            table[token] = b"" if added[token].special else name.encode()
        elif byte_level and all(character in BYTES for character in name):
            table[token] = spelt(name)
        elif inside:
            table[token] = (name[2:] if name.startswith(inside) else f" {name}").encode()
        elif found := re.fullmatch(r"<0x([0-9A-F]{2})>", name):
            table[token] = bytes([int(found[1], 16)])
        else:
            table[token] = name.replace("\u2581", " ").encode()
    return table
