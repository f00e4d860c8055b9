"""What is asked of the engine, and what it tells: token ids only, never text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from culm.engine.sampling import Sampling

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Request:
    """A prompt to continue.

    prompt: at least one token. max_tokens: how many are generated at most.
    stop: generation ends with the first of these, which is part of the result.
    adapter: the name of one that stands beside the model; None: the model alone.
    logprobs: also tell this many likeliest tokens a step (see `Event.top`); None: do not.
    """

    prompt: tuple[int, ...]
    max_tokens: int = 64
    sampling: Sampling = Sampling()  # noqa: RUF009 - frozen
    stop: frozenset[int] = frozenset()
    logprobs: int | None = None
    adapter: str | None = None


@dataclass(frozen=True)
class Event:
    """One token of one request.

    logprob: natural log, under softmax(logits / temperature) before penalties and truncation, with
        temperature 0 counted as 1: the policy that reinforcement learning differentiates.
    top: where the request asks for logprobs, pairs (token, logprob) under softmax(logits), the
        generated token first and then the likeliest ones in order; else empty.
    finish: why this token is the last one; None: it is not.
    """

    request: int
    token: int
    logprob: float
    finish: Finish | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Completion:
    """All tokens of a request, the stop token included, with `Event.logprob` of each."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Finish


@dataclass
class Running:
    """A request in a slot. The last of `output` is not in the cache yet.

    draft: tokens that may follow it. finish: why it has ended.
    """

    id: int
    request: Request
    seed: int
    output: list[int] = field(default_factory=list)
    draft: list[int] = field(default_factory=list)
    finish: Finish | None = None

    @property
    def source(self) -> tuple[tuple[int, ...], str | None]:
        """What its first cache entries follow from: the prompt, and who reads it."""
        return self.request.prompt, self.request.adapter

    @property
    def length(self) -> int:
        """Tokens so far, prompt and output."""
        return len(self.request.prompt) + len(self.output)

    @property
    def end(self) -> int:
        """The place behind the draft."""
        return self.length + len(self.draft)

    def window(self, start: int, width: int) -> list[int]:
        """Tokens from `start` on, the draft behind them, filled up with 0."""
        prompt = self.request.prompt
        skip = max(start - len(prompt), 0)
        tokens = [*prompt[start : start + width], *self.output[skip:], *self.draft]
        return (tokens + [0] * width)[:width]
