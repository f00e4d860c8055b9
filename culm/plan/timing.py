"""Timed trials: how long a call takes, and decoding without the reading of prompts."""

from __future__ import annotations

import time
from collections.abc import Callable

from culm.engine.engine import Engine
from culm.engine.request import Request
from culm.engine.sampling import Sampling
from culm.model.quantized_cache import CacheKind
from culm.model.transformer import Transformer


def seconds_of(step: Callable[[], None]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def decoding_trial(
    model: Transformer,
    rows: int,
    prompt: int,
    new: int,
    fused: bool = True,
    cache: CacheKind = "plain",
) -> Callable[[], float]:
    """A function that generates `new` tokens after each of `rows` prompts of `prompt` tokens.

    It returns the seconds of decoding alone, in which new - 1 tokens of each row are made.
    """
    engine = Engine(model, rows, prompt + new, fused=fused, cache=cache)
    tokens = tuple(i % model.config.vocabulary for i in range(prompt))

    def decode() -> float:
        for row in range(rows):
            first = row % model.config.vocabulary
            engine.add(Request((first, *tokens[1:]), new, Sampling(temperature=0)))
        engine.step()  # reads the prompts
        start = time.perf_counter()
        while engine.busy:
            engine.step()
        return time.perf_counter() - start

    return decode
