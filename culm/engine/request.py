"""Requests to the engine, and the events that it answers with: token ids only, never text."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from culm.engine.constraint import Allowed, Constraint, check_first
from culm.engine.sampling import Sampling
from culm.exits import GAVE_NAN, NotFinite

# A stop token; the maximum number of tokens; the constraint lets nothing follow; it failed; the
# model gave no probabilities but NaN, so that the token means nothing.
Finish = Literal["stop", "length", "complete", "failed", "invalid"]


@dataclass(frozen=True)
class Request:
    """A prompt to continue.

    prompt: at least one token. max_tokens: maximum number of new tokens.
    stop: generation ends with the first of these, which is part of the result.
    adapter: name of an adapter that was loaded with the model; None: the base model.
    logprobs: also report this many most likely tokens per step (see `Event.top`); None: do not.
    constraint: limits which tokens may follow; None: any may.
    salt: requests find the prompts of others in the prefix cache only if these have the same salt.
        It comes from whoever knows the client, never from the client.
    priority: a request with a higher one is served first, and may take the slot of a lower one.
    client: who asks; clients get equal shares of what is served (`culm.engine.queue`).
    embeddings: pairs (position, vector (E,)): what the model reads in place of the embedding of a
        token of the prompt, such as the concept of a sentence. Such a prompt is read alone, by an
        engine without prefix cache and drafts.
    """

    prompt: tuple[int, ...]
    max_tokens: int = 64
    sampling: Sampling = Sampling()  # noqa: RUF009 - frozen
    stop: frozenset[int] = frozenset()
    logprobs: int | None = None
    adapter: str | None = None
    constraint: Constraint | None = None
    salt: str = ""
    priority: int = 0
    client: str = ""
    embeddings: tuple[tuple[int, Tensor], ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Event:
    """One token of one request.

    logprob: natural log, under softmax(logits / temperature) before penalties, constraint and
        truncation, with temperature 0 counted as 1: the policy that reinforcement learning
        differentiates.
    top: where the request asks for logprobs, pairs (token, logprob) under softmax(logits), the
        generated token first and then the most likely ones in order; else empty.
    finish: why this token is the last one; None: it is not.
    cached: number of tokens of the prompt that came from the prefix cache.
    """

    request: int
    token: int
    logprob: float
    finish: Finish | None = None
    top: tuple[tuple[int, float], ...] = ()
    cached: int = 0


@dataclass(frozen=True)
class Completion:
    """All tokens of a request, the stop token included, with `Event.logprob` of each.

    cached: as in `Event`.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Finish
    cached: int = 0

    @classmethod
    def of(cls, events: Sequence[Event]) -> Completion:
        """From all events of a request.

        Raises:
            NotFinite: the model gave NaN, so that its tokens mean nothing.
        """
        finish = events[-1].finish
        assert finish is not None
        if finish == "invalid":
            raise NotFinite(GAVE_NAN)
        tokens, logprobs = tuple(e.token for e in events), tuple(e.logprob for e in events)
        return cls(tokens, logprobs, finish, events[0].cached)


@dataclass(eq=False)
class Running:
    """A request in a slot. The last of `output` is not in the cache yet.

    draft: tokens that may follow it. finish: why it has ended. cached: as in `Event`.
    keys: of its blocks in the prefix cache, and the version of the weights that they are for.
    """

    id: int
    request: Request
    seed: int
    output: list[int] = field(default_factory=list)
    draft: list[int] = field(default_factory=list)
    finish: Finish | None = None
    cached: int = 0
    keys: list[bytes] = field(default_factory=list)
    version: int = -1
    _mask: tuple[int, Allowed] | None = None  # of the output, with its length

    @classmethod
    def new(cls, number: int, request: Request) -> Running:
        """A request that waits or runs; without a seed of its own it gets a new one."""
        seed = request.sampling.seed
        return cls(number, request, secrets.randbits(63) if seed is None else seed)

    @property
    def source(self) -> tuple[tuple[int, ...], str | None, str]:
        """Rows that agree in it are read once: tokens and adapter, and the salt."""
        salt = self.request.salt
        if self.request.embeddings:  # which may differ where the tokens do not
            salt = f"{salt} embeddings of {self.id}"
        return (*self.request.prompt, *self.output), self.request.adapter, salt

    @property
    def length(self) -> int:
        """Tokens so far, prompt and output."""
        return len(self.request.prompt) + len(self.output)

    @property
    def newest(self) -> int:
        """The last token so far."""
        return self.output[-1] if self.output else self.request.prompt[-1]

    @property
    def end(self) -> int:
        """The position after the draft."""
        return self.length + len(self.draft)

    def window(self, start: int, width: int) -> list[int]:
        """Tokens from `start` on, then the draft, filled up with 0."""
        tokens = [*self.tokens_from(start), *self.draft]
        return (tokens + [0] * width)[:width]

    def tokens_from(self, start: int) -> list[int]:
        """Tokens of prompt and output from a position on."""
        prompt = self.request.prompt
        return [*prompt[start:], *self.output[max(start - len(prompt), 0) :]]

    def allowed(self, output: Sequence[int]) -> Allowed | None:
        """Ids that may follow this row's output, or its output and a draft; None: any may."""
        constraint = self.request.constraint
        if constraint is None:
            return None
        if output is not self.output:
            return constraint.mask(output)
        if self._mask is None or self._mask[0] != len(output):
            self._mask = len(output), constraint.mask(output)
        return self._mask[1]


def check_request(request: Request, vocabulary: int, length: int) -> None:
    """ValueError if an engine with these sizes of vocabulary and slots cannot serve the request."""
    if not request.prompt:
        raise ValueError("prompt: it is empty; give at least one token")
    if request.max_tokens < 1:
        raise ValueError(f"max_tokens: {request.max_tokens} is less than 1")
    if len(request.prompt) + request.max_tokens > length:
        raise ValueError(
            f"max_tokens: a prompt of {len(request.prompt)} and {request.max_tokens} more are "
            f"longer than the {length} tokens of a slot of the engine"
        )
    biased = [token for token, _ in request.sampling.bias]
    for name, tokens in (("prompt", request.prompt), ("bias", biased)):
        if outside := [token for token in tokens if not 0 <= token < vocabulary]:
            raise ValueError(
                f"{name}: token {outside[0]} is outside the vocabulary of {vocabulary}"
            )
    if outside := [at for at, _ in request.embeddings if not 0 <= at < len(request.prompt)]:
        raise ValueError(
            f"embeddings: position {outside[0]} is outside a prompt of {len(request.prompt)}"
        )
    if request.constraint is not None:
        check_first(request.constraint, vocabulary)
