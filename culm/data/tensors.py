"""Packed rows as the tensors of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from culm.batch import IGNORED, Batch, counts_of
from culm.data.pack import PackedRows, Segment

SHORT = 120  # tokens of a segment, in the mean, up to which a loop over segments is slower

Read = Callable[[int, int], tuple[np.ndarray, np.ndarray | None]]


def to_batch(rows: PackedRows, read: Read, context: int, pad: int, packed: bool = True) -> Batch:
    """Rows as tensors (B, context); targets are shifted here and nowhere else.

    read: gives the tokens of segments that follow each other, and which of them are learned. pad:
    fills a row up, with no target. packed: whether a row may hold several documents.
    """
    size, shape = len(rows) * context, (len(rows), context)
    tokens, targets = np.empty(size, dtype=np.int64), np.empty(size, dtype=np.int64)
    parts, learned = _parts(rows, context), list[tuple[int, np.ndarray]]()
    for place, start, end in _spans(rows, parts.places[: len(rows.starts)]):
        ids, mask = read(start, end)
        tokens[place : place + len(ids)] = ids
        if mask is not None:
            learned.append((place, mask))
    for place, length in parts.padding:
        tokens[place : place + length] = pad
    targets[:-1] = tokens[1:]
    for place, mask in learned:
        targets[place : place + len(mask) - 1][~mask[1:]] = IGNORED
    order = np.argsort(parts.places)
    places, sizes = parts.places[order], parts.sizes[order]
    targets[places + sizes - 1] = IGNORED  # no document predicts the next
    positions = _positions(places, sizes, context)
    for place, length in parts.padding:
        targets[place : place + length], positions[place : place + length] = IGNORED, 0
    documents = np.repeat(parts.numbers[order].astype(np.int32), sizes).reshape(shape)
    targets, lengths = targets.reshape(shape), torch.from_numpy(parts.filled)
    return Batch(
        tokens=torch.from_numpy(tokens.reshape(shape)),
        targets=torch.from_numpy(targets),
        positions=torch.from_numpy(positions.reshape(shape)),
        documents=torch.from_numpy(documents) if packed else None,
        lengths=lengths,
        counts=counts_of(torch.from_numpy(targets), lengths) if learned else _counts(rows, parts),
    )


def _positions(places: np.ndarray, sizes: np.ndarray, context: int) -> np.ndarray:
    """(positions,) int64, from 0 in each segment: copies of one ramp, which stays in the cache, or
    a sum of ones that starts again, which is faster for very short segments.
    """
    size = int(sizes.sum())
    if size < SHORT * len(sizes):
        steps = np.ones(size, dtype=np.int64)
        steps[0], steps[places[1:]] = 0, 1 - sizes[:-1]
        return steps.cumsum(out=steps)
    positions, ramp = np.empty(size, dtype=np.int64), np.arange(context)
    for place, length in zip(places.tolist(), sizes.tolist(), strict=True):
        positions[place : place + length] = ramp[:length]
    return positions


def _counts(rows: PackedRows, parts: _Parts) -> dict[str, float]:
    """`counts_of` where all is learned: every token but the first of a segment is a target."""
    learned = parts.filled - np.diff(rows.first)
    return {
        "tokens": float(parts.filled.sum()),
        "targets": float(learned.sum()),
        "rows": float(np.count_nonzero(learned)),
    }


@dataclass(frozen=True)
class _Parts:
    """Segments in the order of rows, then the padding of rows that are not full. places: of each in
    all positions. numbers: of its document in the row. filled: (B,) positions that hold a token.
    """

    places: np.ndarray
    sizes: np.ndarray
    numbers: np.ndarray
    filled: np.ndarray
    padding: Sequence[Segment]


def _parts(rows: PackedRows, context: int) -> _Parts:
    sizes, counts, firsts = rows.ends - rows.starts, np.diff(rows.first), rows.first[:-1]
    before, filled = sizes.cumsum() - sizes, np.add.reduceat(sizes, firsts)
    places = before + np.repeat(np.arange(len(rows)) * context - before[firsts], counts)
    numbers = np.arange(len(sizes)) - np.repeat(firsts, counts)
    short = np.flatnonzero(filled < context)
    paddings, gaps = short * context + filled[short], context - filled[short]
    return _Parts(
        np.concatenate([places, paddings]),
        np.concatenate([sizes, gaps]),
        np.concatenate([numbers, counts[short]]),  # padding sees padding only
        filled,
        list(zip(paddings.tolist(), gaps.tolist(), strict=True)),
    )


def _spans(rows: PackedRows, places: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(place, start, end): segments that follow each other in a row as one, to be read at once."""
    new = np.append(True, rows.starts[1:] != rows.ends[:-1])
    new[rows.first[:-1]] = True
    heads = np.flatnonzero(new)
    ends = rows.ends[np.append(heads[1:], len(new)) - 1]
    found = (places[heads], rows.starts[heads], ends)
    return zip(*(one.tolist() for one in found), strict=True)
