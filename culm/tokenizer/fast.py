"""A faster encoder with the same ids, for some tokenizers.

`tiktoken` merges a word in a third of the time of `tokenizers`. It needs no merge list: in a
trained vocabulary, the order of the ids is the order of the merges. Bytes need neither.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import tokenizers

from culm.tokenizer.alphabet import BYTES, spelt
from culm.tokenizer.patterns import COVERING, GPT2

PROBE = "It's 1234.5 km,\n\n  isn't IT?\tDéjà vu: 東京 🙂 x_1 = [0x1F] # end   \r\n"

Encode = Callable[[str], list[int]]


def fast_encoder(inner: tokenizers.Tokenizer) -> Encode | None:
    """Text to ids as `inner` encodes it without special tokens; None if only `inner` can."""
    parts = json.loads(inner.to_str())
    if not is_plain_bpe(parts):
        return None
    vocabulary, merges = parts["model"]["vocab"], parts["model"]["merges"]
    if not merges:
        names = sorted(vocabulary, key=lambda name: vocabulary[name])[:256]
        in_order = all(BYTES.get(name) == vocabulary[name] == i for i, name in enumerate(names))
        return (lambda text: list(text.encode())) if in_order else None
    pattern = _pattern(parts["pre_tokenizer"])
    merged = [vocabulary["".join(pair)] for pair in merges]
    specials = {added["content"] for added in parts["added_tokens"]}
    words = vocabulary.keys() - specials - BYTES.keys()
    # tiktoken would also use a word of the vocabulary that no merge gives.
    if pattern is None or merged != sorted(set(merged)) or len(words) != len(merged):
        return None
    encode = _tiktoken(vocabulary, specials, pattern)
    if encode is None or encode(PROBE) != inner.encode(PROBE, add_special_tokens=False).ids:
        return None
    return encode if pattern in COVERING else _complete(encode, inner, vocabulary)


def is_plain_bpe(parts: dict[str, Any]) -> bool:
    """Whether words are merged from their characters as they are. parts: of a `tokenizer.json`."""
    model = parts["model"]
    odd = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")
    return (
        model["type"] == "BPE"
        and parts["normalizer"] is None
        and not any(model.get(name) for name in (*odd, "byte_fallback"))
        and all(added["special"] for added in parts["added_tokens"])
    )


def _pattern(splitter: dict[str, Any] | None) -> str | None:
    """The regular expression that splits text into words."""
    match splitter:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
            return GPT2
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        }:
            return pattern
    return None


def _complete(encode: Encode, inner: tokenizers.Tokenizer, vocabulary: dict[str, int]) -> Encode:
    """`encode`, for expressions that may not match all of a text: tiktoken skips what is between
    matches, and `tokenizers` turns it into words.
    """
    sizes = {token: len(name) for name, token in vocabulary.items()}  # a character for each byte

    def checked(text: str) -> list[int]:
        ids = encode(text)
        if sum(map(sizes.__getitem__, ids)) == len(text.encode()):
            return ids
        return inner.encode(text, add_special_tokens=False).ids

    return checked


def _tiktoken(vocabulary: dict[str, int], specials: set[str], pattern: str) -> Encode | None:
    try:
        import tiktoken
    except ImportError:
        return None
    ranks = {spelt(name): token for name, token in vocabulary.items() if name not in specials}
    encoding = tiktoken.Encoding("culm", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return encoding.encode_ordinary
