"""Continuous batching: requests join and leave the batch between any two tokens.

              slots            Sequences in use fill the first slots without a gap, so that a
prompt A  ->  [a a a a . . ]   decoding step reads the cache as one view. When a request ends,
prompt B  ->  [b b . . . . ]   the last slot in use is copied into its place. Padding to the
waiting ...   [. . . . . . ]   right is harmless: an entry is seen only once it was overwritten.
"""

from __future__ import annotations

import itertools
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from culm.adapt.multi_lora import check_adapter
from culm.engine.request import Completion, Event, Finish, Request, Running
from culm.engine.runner import Runner
from culm.engine.sampling import Sampler
from culm.engine.speculation import Window, propose
from culm.model.quantized_cache import CacheKind
from culm.model.transformer import Transformer

PREFILL_TOKENS = 8192  # of one prefill, padding included: bounds its memory


class Engine:
    """Generates tokens for many requests at once.

    slots: requests that run together, the others wait. length: tokens of a slot, prompt included;
    the model's context if not given. The engine reads the model's weights as they are at each step.
    vocabulary: ids from there on are never drawn; a model may have more rows than its tokenizer has
    tokens. fused: decode few rows by one C++ function where `culm.engine.fused` serves this model;
    weights may then change their values but not their place. cache: in how many bits keys and
    values are kept; the fused step knows the plain one only. speculate: let the model's heads of
    multi-token prediction draft what follows (`culm.engine.speculation`), so that a step may give
    several tokens of a request; they are those of plain decoding, up to rounding.
    """

    def __init__(
        self,
        model: Transformer,
        slots: int = 8,
        length: int | None = None,
        *,
        vocabulary: int | None = None,
        fused: bool = True,
        cache: CacheKind = "plain",
        speculate: bool = False,
    ) -> None:
        if slots < 1:
            raise ValueError(f"slots: {slots} is less than 1")
        self.model = model
        self.slots, self.length = slots, length or model.config.context
        if self.length > model.config.context:
            raise ValueError(
                f"max_tokens: a prompt and its answer have up to {self.length} tokens, more than "
                f"the model's context of {model.config.context}"
            )
        self.vocabulary = vocabulary or model.config.vocabulary
        self.runner = Runner(model, slots, self.length, cache, fused, speculate)
        self.waiting: deque[Running] = deque()
        self.running: list[Running] = []  # index = slot
        self._ids = itertools.count()
        self._samplers: dict[int, Sampler] = {}  # by tokens of a row, for those that run now

    def check(self, request: Request) -> None:
        """ValueError if the request cannot be served."""
        size = self.vocabulary
        if not request.prompt:
            raise ValueError("prompt: it is empty; give at least one token")
        if request.max_tokens < 1:
            raise ValueError(f"max_tokens: {request.max_tokens} is less than 1")
        if len(request.prompt) + request.max_tokens > self.length:
            raise ValueError(
                f"max_tokens: a prompt of {len(request.prompt)} and {request.max_tokens} more are "
                f"longer than the {self.length} tokens of a slot of the engine"
            )
        check_adapter(request.adapter, self.runner.adapters)
        biased = [token for token, _ in request.sampling.bias]
        for name, tokens in (("prompt", request.prompt), ("bias", biased)):
            if outside := [token for token in tokens if not 0 <= token < size]:
                raise ValueError(f"{name}: token {outside[0]} is outside the vocabulary of {size}")

    def add(self, request: Request) -> int:
        """Queue a request; the number that its events carry.

        Raises:
            ValueError: the prompt is empty, too long with its tokens, or outside the vocabulary.
        """
        self.check(request)
        seed = request.sampling.seed
        new = Running(next(self._ids), request, secrets.randbits(63) if seed is None else seed)
        self.waiting.append(new)
        return new.id

    @property
    def busy(self) -> bool:
        """Whether a step has something to do."""
        return bool(self.waiting or self.running)

    @torch.inference_mode()  # as the cache was made, in which another slot may move
    def abort(self, number: int) -> None:
        """Forget a request, wherever it is; no event of it follows."""
        for slot, running in enumerate(self.running):
            if running.id == number:
                self._free(slot)
                return
        self.waiting = deque(waiting for waiting in self.waiting if waiting.id != number)

    def clear(self) -> None:
        """Forget every request, as after an error in the middle of a step."""
        self.waiting.clear()
        self.running.clear()
        self._samplers.clear()

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """The next token of every request that is served in this step, or several with a draft.

        Waiting requests that fit start first; if none does, all running ones advance.
        """
        if self.waiting and len(self.running) < self.slots:
            return self._start()
        return self._decode() if self.running else []

    def generate(
        self, requests: Sequence[Request], progress: Callable[[int], None] | None = None
    ) -> list[Completion]:
        """All requests to their end, in their order; `progress(tokens)` is called each step.

        For an engine without other requests: their events would go to nobody.
        """
        for request in requests:
            self.check(request)
        numbers = [self.add(request) for request in requests]
        events: dict[int, list[Event]] = {number: [] for number in numbers}
        while self.busy:
            told = self.step()
            for event in told:
                if event.request in events:
                    events[event.request].append(event)
            if progress:
                progress(len(told))
        return [_completion(events[number]) for number in numbers]

    # -----------------------------------------------------------------------------------------

    def _start(self) -> list[Event]:
        """Fill free slots with waiting requests, those of like length in one forward."""
        free = self.slots - len(self.running)
        new = [self.waiting.popleft() for _ in range(min(free, len(self.waiting)))]
        events = []
        for group in _alike(new):
            first = len(self.running)
            logits = self.runner.prefill(group, first)
            self.running += group
            self._samplers.clear()
            events += self._draw(first, logits[:, None])
            self._samplers.clear()
            self._free_finished(first)
        return events

    def _decode(self) -> list[Event]:
        """Advance all rows: by a token, and by as many of its draft as are accepted."""
        logits, window = self.runner.decode(self.running)
        events = self._draw(0, logits)
        if window is not None:
            self._propose(window)
        self._free_finished(0)
        return events

    def _propose(self, window: Window) -> None:
        """A new draft for every row."""
        rows = self.running
        for row in rows:
            row.draft.clear()

        def choose(logits: Tensor) -> Tensor:
            behind = [row.output + row.draft for row in rows]
            return self._sample(0, logits[:, None], behind)[0][:, 0]

        propose(self.runner.model, rows, window, choose)

    def _draw(self, first: int, logits: Tensor) -> list[Event]:
        """Draw for the rows from `first` on, and tell what they get.

        logits: (N, M, V) behind the output of a row and behind its draft. A token of the draft is
        accepted if it is what was drawn in its place; the first draw that differs ends the step.
        """
        rows, places = self.running[first:], range(logits.shape[1])
        before = [row.output + row.draft[:i] if i else row.output for row in rows for i in places]
        drawn, logprobs = (told.tolist() for told in self._sample(first, logits, before))
        events = []
        for index, row in enumerate(rows):
            ranks = row.request.logprobs
            for place, token in enumerate(drawn[index]):
                row.output.append(token)
                row.finish = _finish(row)
                top: tuple[tuple[int, float], ...] = ()
                if ranks is not None:
                    top = ranked(logits[index, place].log_softmax(-1), token, ranks)
                events.append(Event(row.id, token, logprobs[index][place], row.finish, top))
                if row.finish or place == len(row.draft) or row.draft[place] != token:
                    break
        return events

    def _sample(
        self, first: int, logits: Tensor, outputs: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor]:
        """Tokens and their log-probabilities (N, M) for the rows from `first` on.

        logits: (N, M, V), in which ids beyond the vocabulary are struck out. outputs: what each of
        the N * M follows, behind the prompt of its row.
        """
        logits[..., self.vocabulary :] = float("-inf")
        shape = logits.shape[:2]
        rows, times = self.running[first:], range(shape[1])
        sampler = self._samplers.get(shape[1])
        if sampler is None:
            settings = [row.request.sampling for row in rows for _ in times]
            seeds = [row.seed for row in rows for _ in times]
            sampler = self._samplers[shape[1]] = Sampler(settings, seeds, logits.device)
        prompts = [row.request.prompt for row in rows for _ in times]
        tokens, logprobs = sampler(logits.flatten(0, 1), prompts, outputs)
        return tokens.view(shape), logprobs.view(shape)

    def _free_finished(self, first: int) -> None:
        for slot in reversed(range(first, len(self.running))):
            if self.running[slot].finish:
                self._free(slot)

    def _free(self, slot: int) -> None:
        last = self.running.pop()
        if slot < len(self.running):
            self.runner.cache.copy(len(self.running), slot, last.length)
            self.running[slot] = last
        self._samplers.clear()


def _alike(new: list[Running]) -> Iterator[list[Running]]:
    """Requests sorted by length, in groups that are small enough for one forward."""
    group: list[Running] = []
    for waiting in sorted(new, key=lambda waiting: waiting.length):
        if group and (len(group) + 1) * waiting.length > PREFILL_TOKENS:
            yield group
            group = []
        group.append(waiting)
    yield group


def _finish(row: Running) -> Finish | None:
    if row.output[-1] in row.request.stop:
        return "stop"
    return "length" if len(row.output) >= row.request.max_tokens else None


def ranked(logprobs: Tensor, token: int, count: int) -> tuple[tuple[int, float], ...]:
    """logprobs: (V,) -> (token, its logprob), then the `count` likeliest tokens with theirs."""
    best = logprobs.topk(min(count, logprobs.shape[-1]))
    likeliest = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return ((token, float(logprobs[token])), *likeliest)


def _completion(events: list[Event]) -> Completion:
    finish = events[-1].finish
    assert finish is not None
    return Completion(tuple(e.token for e in events), tuple(e.logprob for e in events), finish)
