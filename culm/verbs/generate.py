"""`culm generate`: the continuation of a text, as it comes."""

from __future__ import annotations

import sys
from typing import Unpack

from culm.text.language_model import LanguageModel
from culm.text.options import GenerationOptions


def write_continuation(
    model: LanguageModel, prompt: str, max_tokens: int, **options: Unpack[GenerationOptions]
) -> None:
    """Write the prompt and what follows it to standard output."""
    pieces = model.stream(prompt, max_tokens, **options)
    sys.stdout.write(prompt + next(pieces, ""))  # only now is it known that the prompt fits
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
