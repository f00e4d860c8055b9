"""Continuous batching: requests join and leave the batch between any two tokens.

              slots            Sequences in use fill the first slots without a gap, so that a
prompt A  ->  [a a a a . . ]   decoding step reads the cache as one view. When a request ends,
prompt B  ->  [b b . . . . ]   the last slot in use is copied into its place. Padding to the
waiting ...   [. . . . . . ]   right is harmless: an entry is overwritten before it is read.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from culm.adapt.multi_lora import check_adapter
from culm.engine import scoring
from culm.engine.choose import Chooser
from culm.engine.embedding import EmbeddedPart, embed_in_steps
from culm.engine.pace import Pace
from culm.engine.prefill import PromptReader, groups
from culm.engine.queue import Queue
from culm.engine.request import Completion, Event, Request, Running, check_request
from culm.engine.runner import Runner
from culm.engine.speculation import Speculation, draft, drafter_for
from culm.model.ability import require_next_token
from culm.model.quantized_cache import CacheKind
from culm.model.transformer import Transformer


class Engine:
    """Generates tokens for many requests at once.

    slots: maximum concurrent requests, the others wait. length: tokens of a slot, prompt included;
    the model's context if not given. The engine reads the model's weights as they are at each step.
    vocabulary: ids from there on are never sampled; a model may have more rows than its tokenizer
    has tokens. suppressed: nor are these ids. fused: decode few rows by one C++ function where
    `culm.engine.fused` supports the model; weights may then change their values but not their
    address. cache: int8 and int4 store keys and values in fewer bits. speculate: who drafts tokens
    (`culm.engine.speculation`), or a smaller model that does, so that a step may give several
    tokens of a request; they are those of plain decoding, up to rounding. step_tokens: read up to
    this many tokens of prompts between two decoding steps, fewer while requests are running
    (`culm.engine.pace`), so that these hardly wait for long prompts. None: all prompts that have a
    slot are read before the next decoding step. prefix_tokens: keep blocks of earlier prompts
    and answers, up to this many tokens, so that a common beginning is read once
    (`culm.engine.prefix`);
    layers with a window then store all tokens of a slot. 0: none. Call `weights_changed` when the
    weights have changed.
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
        speculate: Speculation | Transformer | None = None,
        step_tokens: int | None = None,
        suppressed: Sequence[int] = (),
        prefix_tokens: int = 0,
    ) -> None:
        require_next_token(model)
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
        self.drafter = drafter_for(model, speculate, slots, self.length) if speculate else None
        self.runner = Runner(model, slots, self.length, cache, fused, self.drafter, prefix_tokens)
        self.waiting = Queue()
        self.running: list[Running] = []  # index = slot
        self._pace = None if step_tokens is None else Pace(step_tokens)
        self._prompts = PromptReader(self.runner)
        self._read_last = False  # whether the last step read a prompt
        self._ids = itertools.count()
        self.chooser = Chooser(self.vocabulary, suppressed)

    def check(self, request: Request) -> None:
        """ValueError if the engine cannot serve the request."""
        check_request(request, self.vocabulary, self.length)
        if request.embeddings and (self.drafter is not None or self.runner.prefix.blocks):
            raise ValueError(
                "embeddings: prefix cache and drafts know tokens only; use an engine with "
                "prefix_tokens=0 and speculate=None"
            )
        check_adapter(request.adapter, self.runner.adapters)

    def add(self, request: Request) -> int:
        """Queue a request; returns the number that its events carry.

        Raises:
            ValueError: the prompt is empty, outside the vocabulary, or too long with max_tokens; or
                another setting is impossible.
        """
        self.check(request)
        new = Running.new(next(self._ids), request)
        self.waiting.add(new)
        return new.id

    @property
    def busy(self) -> bool:
        """Whether a request waits or runs."""
        return bool(self.waiting or self.running or self._prompts.rows)

    @torch.inference_mode()  # like the cache, in which another slot may move
    def abort(self, number: int) -> None:
        """Drop a request, waiting or running; it gets no more events."""
        for slot, running in enumerate(self.running):
            if running.id == number:
                self._free(slot)
                return
        self.waiting.remove(number)
        self._prompts.abort(number)

    @torch.inference_mode()
    def clear(self) -> None:
        """Drop every request, for example after an error in the middle of a step."""
        for rows in (self.waiting, self.running, self._prompts.rows):
            rows.clear()
        for slot in range(self.slots):
            self.runner.cache.clear(slot)
        self.runner.prefix.clear()
        self.chooser.forget()

    def weights_changed(self) -> None:
        """Forget what was read with other weights; requests that run go on with the new ones."""
        self.runner.prefix.clear()

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Events of one step: a token for each row that advances, or several with a draft.

        Waiting requests that fit are started first; otherwise all running ones advance. With
        `step_tokens`, both take turns; a step that reads a part of a prompt has no events.
        """
        if self._pace is not None:
            return self._take_turns(self._pace)
        if self._has_room():
            return self._start()
        return self._decode() if self.running else []

    def generate(
        self, requests: Sequence[Request], progress: Callable[[int], None] | None = None
    ) -> list[Completion]:
        """Run requests to their end; completions in the same order.

        progress: called each step with the number of new tokens. The engine must have no other
        requests, because their events would be lost.

        Raises:
            ValueError: as `add`.
            NotFinite: the model gave NaN.
        """
        for request in requests:
            self.check(request)
        numbers = [self.add(request) for request in requests]
        events: dict[int, list[Event]] = {number: [] for number in numbers}
        while self.busy:
            new = self.step()
            for event in new:
                if event.request in events:
                    events[event.request].append(event)
            if progress:
                progress(len(new))
        return [Completion.of(events[number]) for number in numbers]

    def score(
        self, sequences: Sequence[Sequence[int]], adapters: scoring.Names | None = None
    ) -> list[Tensor]:
        """Log-probabilities of given ids: (T - 1,) fp32 for each T, element t of ids[t + 1].

        adapters: one for each sequence, by name; None: the base model for all.

        Raises:
            ValueError: a sequence is empty, an id outside the vocabulary, or an adapter not known.
        """
        return scoring.score(self.model, sequences, adapters)

    def embed_in_steps(
        self, texts: Sequence[Sequence[int]], adapter: str | None = None
    ) -> Iterator[EmbeddedPart]:
        """A vector for each text, in parts between which `step` can run
        (`culm.engine.embedding`).
        """
        if (pace := self._pace) is None:
            return embed_in_steps(self.model, texts, adapter)
        steps = embed_in_steps(self.model, texts, adapter, self._reading_tokens(pace))
        return pace.scored(steps, lambda part: part.tokens)

    def rank_in_steps(
        self, ids: Sequence[int], count: int, adapter: str | None = None
    ) -> Iterator[scoring.Ranked]:
        """`scoring.rank` in parts, between which `step` can run; `scoring.joined` joins them."""
        if (pace := self._pace) is None:
            return scoring.rank_in_steps(self.model, ids, count, adapter)
        room = self._reading_tokens(pace)
        steps = scoring.rank_in_steps(self.model, ids, count, adapter, room)
        return pace.scored(steps, lambda part: len(part.logprobs))

    def _reading_tokens(self, pace: Pace) -> Callable[[], int]:
        return lambda: pace.tokens("scores", len(self.running))

    # -----------------------------------------------------------------------------------------

    def _start(self) -> list[Event]:
        """Fill free slots with waiting requests."""
        new: list[Running] = []
        while self.waiting and len(self.running) + len(new) < self.slots:
            new.append(self.waiting.take())
        events = []
        for group in groups(new, self.runner.prefix):
            events += self._joined(group, self.runner.prefill(group, len(self.running)))
        return events

    def _has_room(self) -> bool:
        """Whether a request waits for which there is a slot.

        Rows of lower priorities leave theirs. They keep their output, and are read again with it.
        """
        while (slot := self.waiting.slot_to_take(self.running, self.slots)) is not None:
            row = self.running[slot]
            self._free(slot)
            row.draft.clear()
            self.waiting.give_back(row)
        return bool(self.waiting) and len(self.running) < self.slots

    def _joined(self, group: list[Running], logits: Tensor) -> list[Event]:
        """Rows whose prompts are in the cache join the running ones; logits: (N, V)."""
        first = len(self.running)
        self.running += group
        self.chooser.forget()
        events = self._accepted(self.running[first:], logits[:, None])
        self.chooser.forget()
        self._free_finished(first)
        return events

    def _take_turns(self, pace: Pace) -> list[Event]:
        """Read a part of the prompts, or decode."""
        self._read_last = not (self.running and self._read_last) and (
            self._prompts.goes_on(self.waiting) or self._has_room()
        )
        if self._read_last:
            read = self._prompts.step(pace, self.waiting, len(self.running))
            return self._joined(*read) if read else []
        if not self.running:
            return []
        with pace.decoding():
            return self._decode()

    def _decode(self) -> list[Event]:
        """Advance all rows: by a token, and by as many of its draft as are accepted."""
        rows = self.running
        logits, window = self.runner.decode(rows, self.slots - bool(self._prompts.rows))
        events = self._accepted(rows, logits)
        if self.drafter is not None:
            draft(self.drafter, rows, window, self.chooser)
        self._free_finished(0)
        return events

    def _accepted(self, rows: Sequence[Running], logits: Tensor) -> list[Event]:
        """The tokens that rows get; logits: (N, M, V)."""
        events = self.chooser.accept(rows, logits)
        clients = {row.id: row.request.client for row in rows}
        for event in events:
            self.waiting.serve(clients[event.request], 1)
        return events

    def _free_finished(self, first: int) -> None:
        for slot in reversed(range(first, len(self.running))):
            if self.running[slot].finish:
                self._free(slot)

    def _free(self, slot: int) -> None:
        row, last = self.running[slot], self.running.pop()
        # The newest token is not in the cache.
        self.runner.keep(row, slot, row.length - 1, row.finish != "invalid")
        if slot < len(self.running):
            self.runner.cache.copy(len(self.running), slot, last.length)
            self.running[slot] = last
        self.chooser.forget()
