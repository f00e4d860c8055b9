"""Token ids and prompts in the forms that callers use."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from culm.tokenizer.tokenizer import Tokenizer

Ids = Sequence[int] | np.ndarray | Tensor  # token ids, one after the other


def listed(ids: Ids) -> list[int]:
    """One sequence as plain integers.

    Raises:
        ValueError: they are not a flat list of integers.
    """
    plain = ids.tolist() if isinstance(ids, np.ndarray | Tensor) else ids
    try:
        return [operator.index(token) for token in plain]
    except TypeError:
        raise ValueError("ids: these are not token ids; give a flat list of integers") from None


def is_batch(prompt: Any) -> bool:
    """Whether these are several prompts, texts or sequences of ids; [] is a batch of none.

    Raises:
        ValueError: it is neither one prompt nor several.
    """
    if isinstance(prompt, np.ndarray | Tensor):
        return prompt.ndim > 1
    if isinstance(prompt, bytes) or not isinstance(prompt, Sequence):
        raise ValueError("prompt: give a text, token ids, or a list of either")
    rows = (str, Sequence, np.ndarray, Tensor)
    return not isinstance(prompt, str) and all(isinstance(item, rows) for item in prompt)


def text_ids(tokenizer: Tokenizer, text: str, specials: bool = False) -> list[int]:
    """Ids of a text with the start of a document, at least one.

    specials: names of special tokens are these tokens, also the start.
    """
    start, ids = tokenizer.start, tokenizer.encode(text, specials)
    given = specials and ids[: len(start)] == start
    return (ids if given else [*start, *ids]) or [tokenizer.end_of_text]
