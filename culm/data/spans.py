"""Tokens as text, in runs of what is learned and what is not."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from culm.tokenizer.tokenizer import Tokenizer


def spans_of(
    segments: list[tuple[np.ndarray, np.ndarray | None]], tokenizer: Tokenizer
) -> list[tuple[str, bool]]:
    """Runs of equal mask, decoded with the special tokens visible."""
    spans = []
    for ids, mask in segments:
        learned = np.ones(len(ids), dtype=bool) if mask is None else mask
        cuts = [0, *(np.flatnonzero(learned[1:] != learned[:-1]) + 1), len(ids)]
        for start, end in pairwise(cuts):
            text = tokenizer.decode(ids[start:end].tolist(), specials=True)
            spans.append((text, bool(learned[start])))
    return spans
