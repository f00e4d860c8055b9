"""Replies of a model to many requests, for every measure that reads what a model says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from culm.engine.denoising import Denoiser
from culm.engine.engine import Engine
from culm.engine.request import Completion, Event, Request
from culm.model.ability import require_text
from culm.model.transformer import Transformer
from culm.text.reply import Reply
from culm.tokenizer.tokenizer import Tokenizer

SLOTS = 64  # requests that are answered at once


@dataclass(frozen=True)
class Answer:
    """The reply to one request, without special tokens, and the completion that it comes from."""

    text: str
    completion: Completion


def answer(
    model: Transformer,
    tokenizer: Tokenizer,
    requests: Sequence[Request],
    slots: int = SLOTS,
    stops: Sequence[Sequence[str]] | None = None,
) -> list[Answer]:
    """Replies in the order of the requests; `slots` of them are generated at the same time.

    stops: for each request, texts that end its reply and are no part of it.
    """
    if not requests:
        return []
    if not model.config.masked:
        require_text(model)
    longest = max(len(request.prompt) + request.max_tokens for request in requests)
    kind = Denoiser if model.config.masked else Engine
    engine = kind(
        model, min(slots, len(requests)), longest, vocabulary=tokenizer.vocabulary,
        suppressed=tokenizer.suppressed,
    )  # fmt: skip
    numbers = {engine.add(request): index for index, request in enumerate(requests)}
    replies = [Reply(tokenizer, ends) for ends in stops or [()] * len(requests)]
    events: list[list[Event]] = [[] for _ in requests]
    texts = [""] * len(requests)
    while engine.busy:
        for event in engine.step():
            index = numbers[event.request]
            events[index].append(event)
            texts[index] += replies[index].read(event)
            if replies[index].stopped and not event.finish:
                engine.abort(event.request)
    # One that was aborted at a stop has no event that says why it ended.
    for found in events:
        found[-1] = replace(found[-1], finish=found[-1].finish or "stop")
    return [Answer(text, Completion.of(found)) for text, found in zip(texts, events, strict=True)]
