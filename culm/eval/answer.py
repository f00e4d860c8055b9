"""Replies of a model to many requests, for every measure that reads what a model says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from culm.engine.engine import Engine
from culm.engine.request import Completion, Request
from culm.model.transformer import Transformer
from culm.tokenizer.tokenizer import Tokenizer

SLOTS = 64  # requests that are answered at once


@dataclass(frozen=True)
class Answer:
    """The reply to one request, without special tokens, and the completion that it comes from."""

    text: str
    completion: Completion


def answer(
    model: Transformer, tokenizer: Tokenizer, requests: Sequence[Request], slots: int = SLOTS
) -> list[Answer]:
    """Replies in the order of the requests; `slots` of them are generated at the same time."""
    if not requests:
        return []
    longest = max(len(request.prompt) + request.max_tokens for request in requests)
    engine = Engine(
        model, min(slots, len(requests)), longest, vocabulary=tokenizer.vocabulary,
        suppressed=tokenizer.suppressed,
    )  # fmt: skip
    completions = engine.generate(list(requests))
    return [Answer(tokenizer.decode(one.tokens), one) for one in completions]
