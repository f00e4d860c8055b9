"""Generation by a model that fills in masked tokens (masked diffusion, arXiv 2502.09992).

    prompt  [m] [m] [m] [m]   ->  prompt  [m]  b  [m] [m]   ->  ...  ->  prompt  a  b  c  d
            a block of masks      the most confident token is kept       the next block follows

In each step the model predicts all masked tokens of a block, and the most confident predictions are
kept, `tokens_per_step` of them. Blocks follow each other from left to right, so a text may have any
length. Nothing is cached: later tokens change what earlier ones see.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from culm.engine.choose import finish_of
from culm.engine.queue import Queue
from culm.engine.request import Completion, Event, Request, Running, check_request
from culm.engine.sampling import TokenSampler
from culm.model.context import Context
from culm.model.transformer import Transformer

BLOCK = 32  # tokens that are filled in together


@dataclass(eq=False)
class Block:
    """The tokens that a row fills in. tokens: None where there is a mask; logprobs: of the others.
    steps: that were taken.
    """

    row: Running
    tokens: list[int | None]
    logprobs: list[float] = field(init=False)
    steps: int = 0

    def __post_init__(self) -> None:
        self.logprobs = [0.0] * len(self.tokens)

    @property
    def masked(self) -> list[int]:
        """Places without a token."""
        return [place for place, token in enumerate(self.tokens) if token is None]


class Denoiser:
    """Generates tokens for many requests at once; its calls are those of `Engine`.

    slots, length, vocabulary, suppressed: as in `Engine`. tokens_per_step: more are faster, and
    fewer are better, since tokens of one step do not see each other.

    Requests cannot have a constraint, an adapter or `logprobs`.
    """

    def __init__(
        self,
        model: Transformer,
        slots: int = 8,
        length: int | None = None,
        *,
        vocabulary: int | None = None,
        suppressed: Sequence[int] = (),
        tokens_per_step: int = 1,
    ) -> None:
        if tokens_per_step < 1:
            raise ValueError(f"tokens_per_step: {tokens_per_step} is less than 1")
        self.model, self.slots = model, slots
        self.length = length or model.config.context
        self.vocabulary = vocabulary or model.config.mask_id
        self._suppressed, self._tokens_per_step = list(suppressed), tokens_per_step
        self._waiting, self._blocks, self._ids = Queue(), list[Block](), itertools.count()

    def check(self, request: Request) -> None:
        """ValueError if the request cannot be served."""
        check_request(request, self.vocabulary, self.length)
        for name, given in (
            ("constraint", request.constraint),
            ("adapter", request.adapter),
            ("logprobs", request.logprobs),
        ):
            if given is not None:
                raise ValueError(f"{name}: a model that fills in masked tokens does not support it")

    def add(self, request: Request) -> int:
        """Queue a request; returns the number that its events carry. ValueError as `check`."""
        self.check(request)
        new = Running.new(next(self._ids), request)
        self._waiting.add(new)
        return new.id

    @property
    def busy(self) -> bool:
        """Whether a request waits or runs."""
        return bool(self._waiting or self._blocks)

    def abort(self, number: int) -> None:
        """Drop a request, waiting or running; it gets no more events."""
        self._waiting.remove(number)
        self._blocks = [block for block in self._blocks if block.row.id != number]

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Run requests to their end; completions in the same order."""
        numbers = [self.add(request) for request in requests]
        events: dict[int, list[Event]] = {number: [] for number in numbers}
        while self.busy:
            for event in self.step():
                events[event.request].append(event)
        return [Completion.of(events[number]) for number in numbers]

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Fill in some tokens of each running row; the tokens of a block come when it is full."""
        while self._waiting and len(self._blocks) < self.slots:
            self._blocks.append(_next_block(self._waiting.take()))
        self._keep(*self._predicted())
        events = list[Event]()
        for index, block in enumerate(self._blocks):
            if not block.masked:
                events += _events(block)
                self._blocks[index] = _next_block(block.row)
        self._blocks = [block for block in self._blocks if not block.row.finish]
        return events

    def _predicted(self) -> tuple[list[int], list[float]]:
        """A token for each masked place of all blocks in order, with its log-probability."""
        logits = self._logits()
        logits[:, self.vocabulary :] = -math.inf
        logits[:, self._suppressed] = -math.inf
        places = [(block, place) for block in self._blocks for place in block.masked]
        settings = [block.row.request.sampling for block, _ in places]
        # Every place of every step has a random number of its own.
        seeds = [
            block.row.seed + (block.steps << 32) + block.row.length + place
            for block, place in places
        ]
        prompts = [block.row.request.prompt for block, _ in places]
        outputs = [
            [*block.row.output, *(token for token in block.tokens if token is not None)]
            for block, _ in places
        ]
        tokens, logprobs = TokenSampler(settings, seeds, logits.device)(logits, prompts, outputs)
        return tokens.tolist(), logprobs.tolist()

    def _logits(self) -> Tensor:
        """(N, V) fp32 of the masked places of all blocks, in order."""
        mask = self.model.config.mask_id
        rows = [
            [*block.row.tokens_from(0), *(mask if one is None else one for one in block.tokens)]
            for block in self._blocks
        ]
        longest = max(map(len, rows))
        tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
        padding = torch.arange(longest) >= torch.tensor([len(row) for row in rows])[:, None]
        tokens, padding = tokens.to(self.model.device), padding.to(self.model.device)
        # Padding is a document of its own, which the others do not see.
        positions = torch.arange(longest, device=tokens.device).expand(tokens.shape)
        states = self.model.hidden(tokens, Context(positions, padding.int(), padding))
        return self.model.logits(states[(tokens == mask) & ~padding])

    def _keep(self, tokens: Sequence[int], logprobs: Sequence[float]) -> None:
        """Put the most confident predictions of each block in place."""
        found = iter(zip(tokens, logprobs, strict=True))
        for block in self._blocks:
            predicted = [(place, *next(found)) for place in block.masked]
            predicted.sort(key=lambda one: (-one[2], one[0]))
            for place, token, logprob in predicted[: self._tokens_per_step]:
                block.tokens[place], block.logprobs[place] = token, logprob
            block.steps += 1


def _next_block(row: Running) -> Block:
    return Block(row, [None] * min(BLOCK, row.request.max_tokens - len(row.output)))


def _events(block: Block) -> list[Event]:
    """The tokens of a full block, up to the end of its row."""
    row, events = block.row, list[Event]()
    for token, logprob in zip(block.tokens, block.logprobs, strict=True):
        assert token is not None
        row.output.append(token)
        row.finish = "invalid" if math.isnan(logprob) else finish_of(row)
        events.append(Event(row.id, token, logprob, row.finish))
        if row.finish:
            break
    return events
