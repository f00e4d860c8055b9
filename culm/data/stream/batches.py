"""Batches of a stream: rows of each lane, and the integers from which they continue."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from culm import log
from culm.batch import Batch, Reads
from culm.config import SettingError
from culm.data.pack import PackedRows, Segment
from culm.data.stream.pool import StreamPool
from culm.data.stream.process import Encoded, Mark, Reading, Remarks
from culm.data.stream.settings import StreamConfig
from culm.data.tensors import to_batch
from culm.parallel.ranks import Ranks
from culm.tokenizer.tokenizer import Tokenizer

Row = tuple[np.ndarray, list[Segment]]  # tokens, and where each document is among them


class Lane:
    """The documents of one row of every step, end to end.

    document: the first that is not read completely; skip: tokens of it that are read.
    """

    def __init__(self, document: int = 0, skip: int = 0) -> None:
        self.document, self.skip, self.ready = document, skip, -skip
        self._waiting: deque[Encoded] = deque()

    def add(self, found: Encoded) -> None:
        """A further document; one that was read before a run was interrupted is left out."""
        if found.document < self.document:
            return
        if not self._waiting:
            if found.document > self.document:
                self.ready += self.skip  # of another one, which has nothing left
                self.skip = 0
            self.document = found.document
        self._waiting.append(found)
        self.ready += len(found.tokens)

    def take(self, size: int) -> Row:
        """A row of this many tokens. One that ends in a document repeats its last token in the next
        row, so that each token but the first of a document is a target exactly once.
        """
        parts, segments, filled = list[np.ndarray](), list[Segment](), 0
        while filled < size:
            first = self._waiting[0]
            end = int(first.ends[bisect_right(first.ends, self.skip)])
            count = min(size - filled, end - self.skip)
            parts.append(first.tokens[self.skip : self.skip + count])
            segments.append((filled, filled + count))
            filled += count
            inside = self.skip + count < end  # then the row is full
            self._move(count - inside)
        return np.concatenate(parts), segments

    def _move(self, count: int) -> None:
        self.skip += count
        self.ready -= count
        if self.skip < len(self._waiting[0].tokens):
            return
        done = self._waiting.popleft()
        self.skip = 0
        self.document = self._waiting[0].document if self._waiting else done.document + 1


class StreamBatches:
    """Rows of `context` tokens from a source without end: after its last document it starts again,
    in another order. Steps are read one after the other.

    reading: with the lanes of this rank. tokenizer: of the model. micro_rows: in a micro-batch.
    """

    def __init__(
        self,
        reading: Reading,
        tokenizer: Tokenizer,
        settings: StreamConfig,
        context: int,
        rows_per_step: int,
        micro_rows: int,
        source_facts: Sequence[object],
        ranks: Ranks = Ranks(),
    ) -> None:
        if context < 2:
            raise SettingError(f"train.context: {context} leaves nothing to predict; at least 2")
        self._reading, self._tokenizer, self._settings = reading, tokenizer, settings
        self._context, self._micro_rows, self._ranks = context, micro_rows, ranks
        self._marks = [Mark(0, 0, 0, [0] * rows_per_step)]
        self._lanes = {lane: Lane() for lane in reading.lanes}
        self._next = 0
        self._last: list[Batch] | None = None
        self.pool: StreamPool | None = None
        facts = (
            *source_facts, reading.format, reading.invalid, reading.seed, reading.shuffle, context,
            rows_per_step, tokenizer.fingerprint,
        )  # fmt: skip
        self.fingerprint = hashlib.sha256(repr(facts).encode()).hexdigest()

    gives: Reads = "documents"

    @property
    def remarks(self) -> list[str]:
        """What a person should know, a sentence each."""
        name = self._reading.source.name
        return [f"{name} is tokenised while the run trains; duplicates are not dropped."]

    def step(self, number: int) -> list[Batch]:
        """The micro-batches of step `number` (from 0) for this rank.

        Raises:
            SettingError: the text cannot be read, or a process was killed.
        """
        if self._last is not None and number == self._next - 1:
            return self._last
        if number < self._next:
            raise ValueError(f"step {number}: a stream continues with step {self._next}")
        while number > self._next:  # data that a run leaves out is read all the same
            self._read()
        return self._read()

    def _read(self) -> list[Batch]:
        """The next step, which may be asked for once more."""
        rows = [self._row(lane) for lane in self._lanes.values()]
        at_once = range(0, len(rows), self._micro_rows)
        self._last = [self._batch(rows[at : at + self._micro_rows]) for at in at_once]
        self._next += 1
        return self._last

    def state(self, steps: int) -> dict[str, Tensor]:
        """Where each lane continues, and the last mark before all of them."""
        own = {lane: (one.document, one.skip) for lane, one in self._lanes.items()}
        first = min(document for document, _ in own.values())
        while len(self._marks) > 1 and self._marks[1].document <= first:
            del self._marks[0]
        every = self._ranks.gather((own, self._marks[0]))
        lanes = {lane: place for places, _ in every for lane, place in places.items()}
        mark = min((mark for _, mark in every), key=lambda one: one.document)
        numbers = [mark.document, mark.epoch, mark.index, *mark.sizes]
        return {
            "lanes": torch.tensor([lanes[lane] for lane in sorted(lanes)]),
            "mark": torch.tensor(numbers),
        }

    def restore(self, steps: int, state: Mapping[str, Tensor]) -> None:
        """Continue after this many steps with what `state` gave."""
        self.close()
        document, epoch, index, *sizes = state["mark"].tolist()
        self._marks = [Mark(document, epoch, index, sizes)]
        places = state["lanes"].tolist()
        self._lanes = {lane: Lane(*places[lane]) for lane in self._reading.lanes}
        self._next, self._last = steps, None

    def close(self) -> None:
        """End the processes."""
        if self.pool is not None:
            self.pool.close()
        self.pool = None

    def _row(self, lane: Lane) -> Row:
        """The next row of a lane, as soon as it is there."""
        if self.pool is None:
            self.pool = StreamPool(
                self._reading, self._tokenizer, self._marks[0], self._settings.workers,
                self._settings.prefetch,
            )  # fmt: skip
        while lane.ready < self._context:
            with self._ranks.pulse.waiting():  # for the network
                given = self.pool.get()
            match given:
                case Mark() as mark:
                    if mark.document > self._marks[-1].document:
                        self._marks.append(mark)
                case Remarks(epoch, sentences):
                    if epoch == 0:  # a small source ends many times
                        log.say("The source was read to its end, and begins again.")
                    for sentence in sentences:
                        log.say(sentence)
                case found:
                    for one in found:
                        self._lanes[one.lane].add(one)
        return lane.take(self._context)

    def _batch(self, rows: Sequence[Row]) -> Batch:
        tokens = np.concatenate([tokens for tokens, _ in rows])
        places = [
            [(number * self._context + start, number * self._context + end) for start, end in row]
            for number, (_, row) in enumerate(rows)
        ]
        pad = self._tokenizer.end_of_text
        packed = PackedRows.of(places)
        return to_batch(packed, lambda start, end: (tokens[start:end], None), self._context, pad)
