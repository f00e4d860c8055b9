"""Vocabularies in tiktoken's format: one line per token, with its bytes in base64 and its rank."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import tokenizers
from pydantic import AfterValidator
from tokenizers import decoders, models

from culm.config import Config, SettingError
from culm.tokenizer.alphabet import written
from culm.tokenizer.chat import SPECIALS, TEMPLATE
from culm.tokenizer.patterns import checked, splitter, words_of
from culm.tokenizer.tokenizer import Tokenizer

ADDRESS = "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"
# The ids 100256 and 100261 to 100275 are free in cl100k: five of them are used for chat turns.
CL100K_SPECIALS = {
    "<|endoftext|>": 100257,
    "<|fim_prefix|>": 100258,
    "<|fim_middle|>": 100259,
    "<|fim_suffix|>": 100260,
    **{name: 100261 + place for place, name in enumerate(SPECIALS[1:])},
    "<|endofprompt|>": 100276,
}


class Tiktoken(Config):
    """path: a file such as cl100k_base.tiktoken. pattern: how text is split into words, which the
    file does not say: cl100k, llama3, gpt2, qwen2, or a regular expression.
    """

    kind: Literal["tiktoken"] = "tiktoken"
    path: str
    pattern: Annotated[str, AfterValidator(checked)] = "cl100k"

    def build(self, texts: Iterable[str] = ()) -> Tokenizer:
        """The tokenizer in the file; `texts` is not read."""
        return from_tiktoken(self.path, self.pattern)


def from_tiktoken(path: str | Path, pattern: str = "cl100k") -> Tokenizer:
    """A tokenizer with the ids of a `.tiktoken` file and of cl100k's special tokens.

    pattern: as in `culm.tokenizer.patterns.words_of`.

    A vocabulary smaller than cl100k has Culm's own special tokens after its last rank.
    """
    ranks = _read(Path(path))
    base = max(ranks.values()) + 1
    specials = CL100K_SPECIALS
    if base != min(specials.values()) - 1:
        specials = {name: base + place for place, name in enumerate(SPECIALS)}
    vocabulary = {written(token): rank for token, rank in ranks.items()}
    halves = [_halves(token, ranks) for token in ranks if len(token) > 1]
    merges = [(written(left), written(right)) for left, right in halves]
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocabulary | specials, merges=merges))
    inner.pre_tokenizer = splitter(*words_of(pattern))
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(list(specials))
    return Tokenizer(inner, template=TEMPLATE)


def _read(path: Path) -> dict[bytes, int]:
    try:
        lines = [line.split() for line in path.read_bytes().splitlines() if line]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
    except FileNotFoundError:
        raise SettingError(
            f"{path}: there is no such file; download {ADDRESS} and set tokenizer.path to it"
        ) from None
    except OSError as error:
        raise SettingError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, binascii.Error):
        raise SettingError(
            f"{path}: not a tiktoken file (base64 and a rank on each line)"
        ) from None
    if any(bytes([byte]) not in ranks for byte in range(256)):
        raise SettingError(f"{path}: not a byte-level vocabulary: a byte has no token")
    return dict(sorted(ranks.items(), key=lambda item: item[1]))


def _halves(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that are merged last into this one: after all merges of lower rank."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, len(ranks)) for a, b in pairwise(parts)]
        first = pairs.index(min(pairs))
        parts[first : first + 2] = [parts[first] + parts[first + 1]]
    return parts[0], parts[1]
