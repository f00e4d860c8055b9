"""The processes of a stream: one that reads and divides the documents, and some that tokenise."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, islice
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np

from culm.data.divide import Unit
from culm.data.example import Content, RecordFormat
from culm.data.notes import Notes
from culm.data.units import units_of
from culm.seed import keyed_permutation
from culm.source import Invalid
from culm.source.source import Source
from culm.tokenizer.tokenizer import Tokenizer

BLOCK = 1 << 16  # bytes of text that a worker gets at once


@dataclass(frozen=True)
class Mark:
    """A place in the stream at which a window begins: everything after it follows from it.

    document: its number, over all epochs. index: in its epoch. sizes: bytes of text that each lane
    has so far.
    """

    document: int
    epoch: int
    index: int
    sizes: Sequence[int]


class Encoded(NamedTuple):
    """One document of the stream. tokens: uint32; ends: of the examples in it."""

    lane: int
    document: int
    tokens: np.ndarray
    ends: np.ndarray


class Failed(NamedTuple):
    """Why a process cannot continue."""

    message: str


class Remarks(NamedTuple):
    """What an epoch of the source had that is worth a remark, a sentence each."""

    epoch: int
    sentences: list[str]


Job = tuple[int, int, list[Content]]  # lane, document, contents


@dataclass(frozen=True)
class Reading:
    """What the reader is given. lanes: those of this rank, of all in `mark.sizes`."""

    source: Source
    format: RecordFormat
    invalid: Invalid
    seed: int
    shuffle: int
    lanes: range


def read(given: Reading, mark: Mark, workers: Sequence[Connection], out: Connection) -> None:
    """The reader: from a mark on without end. Sends jobs to the workers, marks and remarks out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends this one
    with suppress(BrokenPipeError):  # a worker or the main process ended, and that one is named
        _reported(lambda: _read(given, mark, workers, out), out)


def _read(given: Reading, mark: Mark, workers: Sequence[Connection], out: Connection) -> None:
    waiting: list[list[Job]] = [[] for _ in workers]
    sizes, filled = np.array(mark.sizes, dtype=np.int64), [0] * len(workers)
    document = mark.document
    for epoch in count(mark.epoch):
        notes = Notes(given.invalid)
        index = mark.index if epoch == mark.epoch else 0
        units = islice(units_of(given.source, given.format, notes), index, None)
        while window := list(islice(units, given.shuffle)):
            out.send(Mark(document, epoch, index, sizes.tolist()))
            for unit in _shuffled(window, given, epoch, index):
                lane = int(sizes.argmin())
                sizes[lane] += unit.size
                if lane in given.lanes:
                    worker = lane % len(workers)
                    waiting[worker].append((lane, document, unit.contents))
                    filled[worker] += unit.size
                    if filled[worker] >= BLOCK:
                        workers[worker].send(waiting[worker])
                        waiting[worker], filled[worker] = [], 0
                document += 1
            index += len(window)
        notes.counts.update(given.source.left_out)
        out.send(Remarks(epoch, notes.remarks))
        if not index:
            raise ValueError(f"{given.source.name}: nothing to read: it holds no document")


def _shuffled(window: list[Unit], given: Reading, epoch: int, index: int) -> Iterator[Unit]:
    """In an order that depends on the seed and the place of the window alone."""
    places = np.arange(len(window))
    if given.shuffle > 1:
        places = keyed_permutation(places, given.seed, (epoch << 40) + index)
    return (window[place] for place in places)


def encode(format: RecordFormat, tokenizer: Tokenizer, jobs: Connection, out: Connection) -> None:
    """A worker: sends the documents of each block that it gets, in order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(EOFError, BrokenPipeError):  # the reader or the main process ended
        _reported(lambda: _encode(format, tokenizer, jobs, out), out)


def _encode(format: RecordFormat, tokenizer: Tokenizer, jobs: Connection, out: Connection) -> None:
    while True:
        try:
            block: list[Job] = jobs.recv()
        except OSError as error:  # the reader was killed in the middle of a block
            raise EOFError from error
        examples = format.encode([one for _, _, some in block for one in some], tokenizer)
        done = []
        for lane, document, contents in block:
            parts = [np.array(next(examples).tokens, dtype=np.uint32) for _ in contents]
            ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
            done.append(Encoded(lane, document, np.concatenate(parts), ends))
        out.send(done)


def _reported(work: Callable[[], None], out: Connection) -> None:
    """Work whose error is sent to the main process."""
    try:
        work()
    except (EOFError, BrokenPipeError):
        raise
    except Exception as error:  # whatever it is, the run must end with its message
        out.send(Failed(str(error) or type(error).__name__))
