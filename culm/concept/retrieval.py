"""How well the next concept is predicted: its rank among those of other places."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

ROUNDING = 1e-12  # of a cosine in fp64: a matmul adds up equal rows in different orders


@dataclass(frozen=True)
class Ranks:
    """values: (N,) int64 from 1, of the true concept among those of all N queries."""

    values: Tensor

    @property
    def reciprocal(self) -> Tensor:
        """(N,) fp64."""
        return 1 / self.values.double()

    @property
    def mrr(self) -> float:
        """Mean reciprocal rank."""
        return float(self.reciprocal.mean())

    def recall(self, count: int) -> float:
        """The share of queries whose true concept is among the first `count`."""
        return float((self.values <= count).double().mean())

    @property
    def contrastive(self) -> float:
        """The mean share of other concepts that are farther away (arXiv 2412.08821)."""
        others = max(1, len(self.values) - 1)
        return float((1 - (self.values.double() - 1) / others).mean())


def ranks(predicted: Tensor, truth: Tensor) -> Ranks:
    """By cosine. predicted, truth: (N, C).

    Scores that are equal up to rounding come in the worst order, so concepts that coincide earn
    nothing; nor does a prediction that is no number.
    """
    scores = F.normalize(predicted.double(), dim=-1) @ F.normalize(truth.double(), dim=-1).T
    return Ranks((~(scores < scores.diagonal()[:, None] - ROUNDING)).sum(1))


def mean_before(concepts: Tensor, count: int | None = None) -> Tensor:
    """(B, S, C): the mean of each concept and those before it, of the last `count` at most."""
    sums = concepts.cumsum(1)
    places = torch.arange(1, concepts.shape[1] + 1, device=concepts.device)
    if count is not None and count < concepts.shape[1]:
        sums = torch.cat((sums[:, :count], sums[:, count:] - sums[:, :-count]), 1)
        places = places.clamp_max(count)
    return sums / places[:, None]


def other_texts(concepts: Tensor) -> Tensor:
    """(B, S, C): each row has the concepts of one far from it, since neighbours are often parts of
    one text.
    """
    return concepts.roll(len(concepts) // 2, 0)


def queries(present: Tensor, context: int, count: int, random: torch.Generator) -> Tensor:
    """(N, 2) int64: rows and places of concepts whose next one is present, with at least `context`
    concepts so far; up to `count` of them, chosen at random.
    """
    known = present[:, 1:].clone()
    known[:, : context - 1] = False
    found = known.nonzero()
    return found[torch.randperm(len(found), generator=random)[:count].to(found.device)]
