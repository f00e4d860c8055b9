"""The base of every concept network: from the concepts of a text to its next one.

A network works on normalised concepts (B, S, C), of one row each, and in fp32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import BeforeValidator, Field, PositiveInt
from torch import Tensor, nn

from culm.concept.diffusion import Sampler
from culm.config import Config, listed
from culm.model.attention import Attention
from culm.model.attention.gqa import GQA
from culm.model.cache import Cache
from culm.model.context import Context
from culm.model.init import initialize
from culm.model.linear import Linear
from culm.model.precision import FullPrecision
from culm.model.trunk import Trunk, TrunkConfig
from culm.seed import keyed, keyed_integer


class ConceptTrunk(TrunkConfig):
    """The Transformer over concepts. context: sentences of a row, the last of which is predicted
    only.
    """

    width: PositiveInt = 192
    layers: Annotated[PositiveInt, Field(le=10_000)] = 4
    context: int = Field(16, ge=2)
    attention: Annotated[tuple[Attention, ...], BeforeValidator(listed), Field(min_length=1)] = (
        GQA(heads=6, qk_norm="head"),
    )


class NetworkConfig(Config, ABC):
    """trunk: the Transformer over concepts, with its context, the number of sentences of a row.
    sampler: how the next concept is sampled, unless a call says otherwise.
    """

    kind: str
    trunk: ConceptTrunk = ConceptTrunk()
    sampler: Sampler = Sampler()

    @abstractmethod
    def new(self, dim: int) -> ConceptNetwork:
        """The network without weights. dim: elements of a concept."""

    def initialized(self, dim: int, seed: int) -> ConceptNetwork:
        """The network with its initial weights, on the CPU."""
        with torch.device("meta"):
            network = self.new(dim)
        network.to_empty(device="cpu")
        initialize(network, seed, self.trunk.layers, self.trunk.init)
        return network


@dataclass
class History:
    """The concepts that were read, for `next`. cache: of the trunk. states: (B, n, E), its output
    for each. length: n.
    """

    cache: Cache
    states: Tensor
    length: int = 0


@dataclass(frozen=True)
class Chances:
    """The random numbers of a loss. Each row has its own seed, so they do not depend on how a step
    is divided into micro-batches and ranks.

    seeds: one per row. estimated: whether the denoiser of this step reads its own estimate.
    """

    seeds: Sequence[int]
    estimated: bool

    @staticmethod
    def of(seed: int, step: int, places: Sequence[int]) -> Chances:
        """places: of the rows in their step."""
        seeds = [keyed_integer(seed, "noise", step, place) for place in places]
        return Chances(seeds, keyed(seed, "estimate", step).random() < 0.5)

    def generators(self) -> list[torch.Generator]:
        """One for each row, on the CPU."""
        return [torch.Generator().manual_seed(seed) for seed in self.seeds]


class ConceptNetwork(FullPrecision, ABC):
    """concepts: (B, S, C) -> the next concept after each.

    The trunk reads each concept through a linear layer; a second one gives a concept.
    """

    def __init__(self, config: NetworkConfig, dim: int) -> None:
        super().__init__()
        self.config, self.dim = config, dim
        width = config.trunk.width
        self.inward: nn.Module = Linear(dim, width, bias=True)
        self.trunk = Trunk(config.trunk)
        self.outward: nn.Module = Linear(width, dim, bias=True)

    @property
    def longest(self) -> int:
        """How many concepts it has learned to read at once: a row without its last one."""
        return self.config.trunk.context - 1

    @abstractmethod
    def loss(self, concepts: Tensor, present: Tensor, chances: Chances) -> Mapping[str, Tensor]:
        """Terms, each summed over the concepts that follow another one.

        present: (B, S) bool; the absent ones come last in their row. chances: of the B rows.
        """

    def calibrate(self, concepts: Tensor, seed: int) -> None:
        """Called once before training. concepts: (N, C), normalised, of training data."""

    def random(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """The random numbers for this many concepts: (*shape, ...), on the CPU."""
        return torch.randn(*shape, self.dim, generator=generator)

    @abstractmethod
    def predictions(self, concepts: Tensor, sampler: Sampler, random: Tensor) -> Tensor:
        """(B, S, C): the next concept after each, from it and all before. random: of (B, S)."""

    def begin(self, rows: int, length: int) -> History:
        """An empty history of `rows` texts of up to `length` concepts."""
        device, width = self.trunk.device, self.config.trunk.width
        return History(self.trunk.cache(rows, length), torch.zeros(rows, 0, width, device=device))

    def read(self, concepts: Tensor, history: History) -> None:
        """Add concepts (B, n, C) to a history."""
        end = history.length + concepts.shape[1]
        places = torch.arange(history.length, end, device=concepts.device)
        context = Context(places.expand(concepts.shape[:2]), cache=history.cache.view(end))
        states = self.trunk(self.inward(concepts), context)
        history.states, history.length = torch.cat((history.states, states), 1), end

    @abstractmethod
    def next(self, history: History, sampler: Sampler, random: Tensor) -> Tensor:
        """(B, C): the concept after a history of at least one. random: of (B,)."""


def successors(present: Tensor) -> Tensor:
    """(B, S - 1) bool: which concepts, from the second on, are predicted."""
    return present[:, 1:]


def summed(values: Tensor, counted: Tensor) -> Tensor:
    """(): the sum of the values that are counted. values, counted: (B, N)."""
    return values.where(counted, 0.0).sum()
