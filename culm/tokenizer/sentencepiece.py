"""Vocabularies of SentencePiece: each token has a score, and spaces are written as U+2581.

The pair of neighbours whose joined token has the highest score is merged first (the BPE of arXiv
1808.06226). Characters without a token become their bytes, such as <0xE6>.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence

from tokenizers import Tokenizer, decoders, models, normalizers
from tokenizers.normalizers import Normalizer

SPACE = "\u2581"  # how a space is written inside a token
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]  # the tokens of single bytes


def merged_by_score(
    ids: Mapping[str, int], scores: Mapping[str, float], unknown: str | None, prefix: bool = True
) -> Tokenizer:
    """A tokenizer that merges by score.

    ids: of all tokens. scores: of the tokens that merges may give. unknown: the token for a
    character without bytes. prefix: whether a space is added before a text.

    Raises:
        ValueError: a score is no number.
    """
    if odd := [name for name, score in scores.items() if math.isnan(score)]:
        raise ValueError(f"the score of {odd[0]!r} is NaN")
    order = sorted(scores, key=lambda name: -scores[name])
    merges = [pair for name in order for pair in splits(name, scores)]
    model = models.BPE(dict(ids), merges, unk_token=unknown, byte_fallback=True, fuse_unk=True)
    return spaced(model, prefix)


def spaced(model: models.Model, prefix: bool, before: Sequence[Normalizer] = ()) -> Tokenizer:
    """A tokenizer that writes spaces as U+2581 in its tokens, and reads them back.

    prefix: whether a space is added before a text. before: what is normalised first.
    """
    inner = Tokenizer(model)
    spaces: list[Normalizer] = [normalizers.Replace(" ", SPACE)]
    steps = [*before, *([normalizers.Prepend(SPACE)] if prefix else []), *spaces]
    inner.normalizer = normalizers.Sequence(steps) if len(steps) > 1 else steps[0]
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    inner.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return inner


def splits(token: str, known: Container[str]) -> list[tuple[str, str]]:
    """Every pair of known tokens that joins to this one."""
    cuts = ((token[:n], token[n:]) for n in range(1, len(token)))
    return [(left, right) for left, right in cuts if left in known and right in known]
