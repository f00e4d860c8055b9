"""Rows of plain text to calibrate a quantiser on, and held-out rows to measure the result."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice
from typing import NamedTuple

import torch
from torch import Tensor

from culm.config import SettingError
from culm.data.format.document import DocumentFormat
from culm.source import open_source
from culm.source.source import LeftOutOnly, Source, found_in
from culm.tokenizer.tokenizer import Tokenizer

ROWS = 160  # maximum; every fifth is held out
LENGTH = 2048  # maximum tokens of a row


class CalibrationRows(NamedTuple):
    """seen: (N, T) to calibrate on. held_out: (M, T) to measure on."""

    seen: Tensor
    held_out: Tensor


def calibration_rows(paths: Sequence[str], tokenizer: Tokenizer, context: int) -> CalibrationRows:
    """The first rows of these files, folders or datasets, of up to `context` tokens.

    Raises:
        SettingError: the text is missing, or shorter than two rows.
    """
    length, format = min(context, LENGTH), DocumentFormat(max_characters=1 << 20)
    skipped = LeftOutOnly()
    texts = (texts for _, texts in found_in(_opened(paths), format.contents, skipped))
    examples = chain.from_iterable(format.encode(text, tokenizer) for text in texts)
    ids = list(islice(chain.from_iterable(e.tokens for e in examples), ROWS * length))
    skipped.say()
    count = len(ids) // length
    if count < 2:
        raise SettingError(
            f"calibrate: {len(ids):,} tokens of text are too few; give at least {2 * length:,}"
        )
    rows = torch.tensor(ids[: count * length]).view(count, length)
    held_out = torch.arange(count) % 5 == 1
    return CalibrationRows(rows[~held_out], rows[held_out])


def _opened(paths: Sequence[str]) -> Source:
    return open_source(list(paths), setting="calibrate")
