"""The forward passes of the engine: prompts into slots of a cache, then each decoding step.

Rows are the requests in use, row i in slot i.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from culm.adapt.multi_lora import adapter_names, adapter_rows
from culm.engine.drafter import Drafter, Window
from culm.engine.fused import fused_decoder
from culm.engine.fused_reader import fused_reader
from culm.engine.prefix import PrefixCache
from culm.engine.request import Running
from culm.model.context import CacheView, Context, LayerContext
from culm.model.quantized_cache import CacheKind
from culm.model.transformer import Transformer

GRANULE = 64  # the cache is read in multiples of this many tokens
# Rows and prompts are padded to a few shapes: oneDNN compiles and stores a matmul for each.
ROUND_ROWS, ROUND_PROMPT = 16, 8


class Runner:
    """A model and the cache of its sequences; the settings are those of `Engine`."""

    def __init__(
        self,
        model: Transformer,
        slots: int,
        length: int,
        cache: CacheKind,
        fused: bool,
        drafter: Drafter | None,
        prefix_tokens: int = 0,
        rollback: int = 0,
    ) -> None:
        """rollback: tokens by which rows are cut, if not by the drafter."""
        self.model, self.slots, self.length = model, slots, length
        self.adapters = adapter_names(model)
        self.drafter = drafter
        self.tokens_read = 0  # of prompts, since the start
        with_mtp = drafter is not None and drafter.with_mtp
        with torch.inference_mode():
            rollback = drafter.rollback if drafter else rollback
            if prefix_tokens:
                rollback = length  # layers with a window keep all tokens, so that blocks have them
            create = model.mtp_cache if with_mtp else model.cache
            self.cache = create(slots, length, cache, rollback)
            ahead = drafter.size if drafter and with_mtp else 0
            self.prefix = PrefixCache(self.cache, prefix_tokens, ahead)
        self._fused = fused_decoder(model, self.cache) if fused else None
        self.reader = fused_reader(model, self._fused)

    def prefill(self, group: list[Running], first: int) -> Tensor:
        """Read rows into the slots from `first` on; logits (N, V) after each one's last token.

        Equal rows are computed once and copied. The prefix cache has the same number of tokens of
        each (`culm.engine.prefill.Group`).
        """
        index: dict[tuple[tuple[int, ...], str | None, str], int] = {}
        for row in group:
            index.setdefault(row.source, len(index))
        group.sort(key=lambda row: index[row.source])
        sources = [index[row.source] for row in group]
        own = [group[sources.index(number)] for number in range(len(index))]
        (start,) = {self.prefix.restore(row, first + number) for number, row in enumerate(own)}
        longest = max(row.length for row in own)
        logits = self._logits_after(own, start, longest, first, [row.length for row in own])
        valid = logits.isnan().any(-1).logical_not().tolist()
        for number, row in enumerate(own):
            self.keep(row, first + number, row.length, valid[number])
        for slot, source in reversed(list(enumerate(sources))):
            if slot != source:  # a source comes before its copies, which are made from the back
                self.cache.copy(first + source, first + slot, longest)
        return logits[sources]

    def keep(self, row: Running, slot: int, tokens: int, valid: bool) -> None:
        """Keep the first tokens of a slot in the prefix cache. Where a row gave NaN, the slot is
        cleared instead: a masked entry has the weight 0, but 0 times NaN is NaN.
        """
        if valid:
            self.prefix.store(row, slot, tokens)
        else:
            self.cache.clear(slot)

    def read(self, row: Running, start: int, end: int, slot: int) -> Tensor:
        """Read tokens start..end of a row into a slot that has those before; logits (1, V)."""
        return self._logits_after([row], start, end, slot, [end])

    def _logits_after(
        self, rows: Sequence[Running], start: int, end: int, slot: int, ends: Sequence[int]
    ) -> Tensor:
        """Read tokens from `start` on into the slots from `slot` on; logits (N, V) after the last.

        ends: the position after the last token that is read of each row; end: the largest of them.
        """
        self.tokens_read += sum(ends) - start * len(rows)
        device = self.model.device
        stop = min(start + _round_up(end - start, ROUND_PROMPT), self.length)
        view = self.cache.view(stop, slot, torch.tensor(ends, device=device))
        adapters = adapter_rows([row.request.adapter for row in rows], self.adapters, device)
        prompts = [row.source[0] for row in rows]
        given = self._embeddings(rows, start, stop)
        return self.model.logits(self._last_states(prompts, start, stop, view, adapters, given))

    def _embeddings(
        self, rows: Sequence[Running], start: int, stop: int
    ) -> tuple[Tensor, Tensor] | None:
        """`Context.embeddings` of a part of the prompts, if one of them has some there."""
        found = [
            (number, at - start, vector)
            for number, row in enumerate(rows)
            for at, vector in row.request.embeddings
            if start <= at < stop
        ]
        if not found:
            return None
        device, width = self.model.device, self.model.config.width
        given = torch.zeros(len(rows), stop - start, dtype=torch.bool, device=device)
        vectors = torch.zeros(*given.shape, width, dtype=self.model.dtype, device=device)
        for number, at, vector in found:
            given[number, at], vectors[number, at] = True, vector.to(vectors)
        return given, vectors

    def _last_states(
        self,
        prompts: Sequence[tuple[int, ...]],
        start: int,
        stop: int,
        view: CacheView,
        adapters: tuple[Tensor, Tensor] | None,
        given: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """(N, E): what `Transformer.hidden` gives for the last tokens of a part of prompts, padded.

        view: its `ends` say where the parts end. given: as `Context.embeddings`.
        """
        assert view.ends is not None
        last = view.ends - 1 - start
        more = self.drafter.size if self.drafter else 0
        parts = [prompt[start : stop + more] for prompt in prompts]
        padded = [part + (0,) * (stop + more - start - len(part)) for part in parts]
        every = torch.tensor(padded, device=self.model.device)
        tokens, following = every.split((stop - start, more), 1)
        positions = torch.arange(start, stop, device=every.device).expand(tokens.shape)
        context = Context(positions, cache=view, adapters=adapters, embeddings=given)
        if self.reader and given is None:
            return self.model.normalized(self.reader.states(tokens, context, last)[0])
        if self.drafter:
            hidden = self.drafter.prefill(tokens, context, following)
        else:
            hidden = self.model.hidden(tokens, context)
        return hidden[torch.arange(len(prompts), device=last.device), last]

    def decode(self, rows: Sequence[Running], slots: int) -> tuple[Tensor, Window | None]:
        """Put each row's last token, and its draft, into the cache, of which `slots` may be used.

        Logits (N, 1 + longest draft, V) after each of them, and what the next draft is made from.
        """
        width = min(self.drafter.window(rows), self.length) if self.drafter else 1
        return self.advance(rows, slots, width)

    def advance(
        self, rows: Sequence[Running], slots: int, width: int
    ) -> tuple[Tensor, Window | None]:
        """`decode` that reads the last `width` tokens of each row, its draft included."""
        if width == 1 and self._fused:
            last, places = [r.newest for r in rows], [r.length - 1 for r in rows]
            logits = self._fused(last, places, [r.request.adapter for r in rows])
            return logits[:, None], None
        if width == 1:
            starts = [row.length - 1 for row in rows]
            states = self._read(rows, starts, [[row.newest] for row in rows], slots)[0]
            return self.model.logits(self.model.normalized(states[: len(rows)])), None
        starts = [max(row.end - width, 0) for row in rows]
        tokens = [row.window(start, width) for row, start in zip(rows, starts, strict=True)]
        window = Window(starts, *self._read(rows, starts, tokens, slots))
        return self._logits(rows, window), window

    def _read(
        self, rows: Sequence[Running], starts: list[int], windows: list[list[int]], slots: int
    ) -> tuple[Tensor, LayerContext]:
        """What `Transformer.states` gives for tokens of each row, and of rows to fill up.

        A shorter text is padded at its end. Cache entries of the padding are overwritten before
        they are read, since the next window starts before them.
        """
        device, count, width = self.model.device, len(rows), len(windows[0])
        filled = _round_up(count, ROUND_ROWS) if count > ROUND_ROWS else count
        empty = min(filled, slots) - count
        tokens = torch.tensor(windows + [[0] * width] * empty, device=device)
        positions = torch.tensor(starts + [0] * empty, device=device)[:, None]
        if width > 1:
            positions = positions + torch.arange(width, device=device)
        length = min(_round_up(max(starts) + width, GRANULE), self.length)
        adapters = adapter_rows([row.request.adapter for row in rows], self.adapters, device)
        context = Context(positions, cache=self.cache.view(length), adapters=adapters)
        if self.reader:
            return self.reader.states(tokens, context)
        return self.model.states(tokens, context)

    def _logits(self, rows: Sequence[Running], window: Window) -> Tensor:
        states, device = window.states, window.states.device
        last = torch.tensor([r.length - 1 - at for r, at in zip(rows, window.starts, strict=True)])
        places = last[:, None] + torch.arange(1 + max(len(row.draft) for row in rows))
        places = places.clamp_max(states.shape[1] - 1).to(device)  # of shorter drafts
        states = states[torch.arange(len(rows), device=device)[:, None], places]
        return self.model.logits(self.model.normalized(states))


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
