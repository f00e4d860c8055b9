"""Exercises of lesson 4a: documents packed into rows."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from culm.data.pack import fit
from culm.learn.exercise import Exercise, Mistake
from culm.model.attend import visible
from culm.model.context import Context
from culm.model.score_rule import ScoreRule


def pack(lengths: list[int], context: int) -> list[int]:
    rows = fit(np.array(lengths), context)
    return sorted(context - sum(lengths[document] for document in row) for row in rows)


def pack_answer(lengths: list[int], context: int) -> list[int]:
    free: list[int] = []  # room in each row
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in free if room >= length]
        if fitting:
            free.remove(min(fitting))
            free.append(min(fitting) - length)
        else:
            free.append(context - length)
    return sorted(free)


def _pack_in_order(lengths: list[int], context: int) -> list[int]:
    free = [context]
    for length in lengths:
        if free[-1] < length:
            free.append(context)
        free[-1] -= length
    return sorted(free)


def _pack_emptiest(lengths: list[int], context: int) -> list[int]:
    free: list[int] = []
    for length in sorted(lengths, reverse=True):
        if free and max(free) >= length:
            free.append(free.pop(free.index(max(free))) - length)
        else:
            free.append(context - length)
    return sorted(free)


def packed_mask(documents: Tensor) -> Tensor:
    length = len(documents)
    context = Context(torch.arange(length)[None], documents[None])
    return visible(0, length, 0, length, context, ScoreRule())[0, 0]


def packed_mask_answer(documents: Tensor) -> Tensor:
    alike = documents[:, None] == documents
    return alike & torch.ones_like(alike).tril()


def positions(documents: Tensor) -> Tensor:
    at = torch.arange(len(documents))
    new = torch.cat((documents.new_ones(1), documents[1:] - documents[:-1])) != 0
    return at - torch.where(new, at, 0).cummax(0).values


def positions_answer(documents: Tensor) -> Tensor:
    found = [0]
    for before, now in pairwise(documents.tolist()):
        found.append(found[-1] + 1 if now == before else 0)
    return torch.tensor(found)


ROW = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])


EXERCISES = (
    Exercise(
        "packing.pack",
        "Put documents into rows, the longest first, each into the fullest row that has room; give "
        "the free room of all rows, sorted.",
        pack,
        lambda g: [([5, 3, 6, 2, 4, 4], 8), ([8, 8], 8), ([2, 3, 4, 6, 5], 10)],
        pack_answer,
        (
            Mistake("the longest document goes first, and into any row with room.", _pack_in_order),
            Mistake("use the fullest row that has room, not the emptiest.", _pack_emptiest),
        ),
    ),
    Exercise(
        "packing.packed_mask",
        "Say which tokens each token of a packed row may read: earlier ones of its own document.",
        packed_mask,
        lambda g: [(ROW,), (torch.zeros(3, dtype=torch.int64),), (torch.arange(4),)],
        packed_mask_answer,
        (
            Mistake(
                "a document must not read the one before it.",
                lambda d: torch.ones(len(d), len(d), dtype=torch.bool).tril(),
            ),
            Mistake("no token reads ahead.", lambda d: d[:, None] == d),
        ),
    ),
    Exercise(
        "packing.positions",
        "Number the tokens of a packed row from 0 in each document.",
        positions,
        lambda g: [(ROW,), (torch.zeros(3, dtype=torch.int64),), (torch.arange(4),)],
        positions_answer,
        (Mistake("each document starts at 0.", lambda d: torch.arange(len(d))),),
    ),
)
