"""A chat template for a tokenizer that has none."""

from __future__ import annotations

import tokenizers

from culm.tokenizer.tokenizer import SPECIALS, TEMPLATE, Tokenizer


def with_chat(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with our chat template, and new ids for the special tokens that this needs.

    What ended its texts still does. One that has a template stays as it is.
    """
    if tokenizer.template is not None:
        return tokenizer
    inner = tokenizers.Tokenizer.from_str(tokenizer.json)
    inner.add_special_tokens(list(SPECIALS[1:]))
    settings = {**tokenizer.settings, "end_of_text_id": tokenizer.end_of_text}
    return Tokenizer(inner, settings, TEMPLATE, tokenizer.stop_ids)
