"""Walks in a graph, as ProsQA (arXiv 2412.06769): which of two nodes is reached from a root?

bd ac cf be cg dk. a: f or k?     steps ac, cf; answer f

An edge is two symbols with nothing between them, so that the token after a symbol is where it leads
to: with a sign in between a small model took far longer to learn one step (`docs/log.md`).
"""

from __future__ import annotations

import random
import string
from itertools import pairwise
from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from culm.config import Config
from culm.task.task import Question, Split, first_of, generator

SYMBOLS = string.ascii_lowercase


class Walk(NamedTuple):
    """edges: pairs of symbols. path: from the root to the answer. other: the wrong candidate."""

    edges: tuple[tuple[str, str], ...]
    path: tuple[str, ...]
    other: str


class Graph(Config):
    """Two trees without cycles, the root of one of them, and a leaf of each: exactly one of the two
    candidates is reached. Both are equally deep, and edges and candidates are in random order.

    name: in the results. nodes: of both trees. hops: edges from the root to the answer, at least
    and at most.
    """

    kind: Literal["graph"] = "graph"
    name: str = "graph"
    nodes: int = Field(14, ge=6, le=26)
    hops: tuple[int, int] = (2, 4)

    @model_validator(mode="after")
    def _fits(self) -> Graph:
        low, high = self.hops
        if not 1 <= low <= high:
            raise ValueError(f"hops: {low} to {high} is no range of 1 or more")
        if 2 * (high + 1) > self.nodes:
            raise ValueError(
                f"nodes: {self.nodes} are too few for two paths of {high} hops; give "
                f"{2 * (high + 1)} or more"
            )
        return self

    def question(self, split: Split, index: int, seed: int) -> Question:
        rng = generator(self.name, split, index, seed)
        walk = first_of(split, self.name, lambda: self._walk(rng), _content)
        edges = " ".join(a + b for a, b in walk.edges)
        candidates = rng.sample([walk.path[-1], walk.other], 2)
        steps = "; ".join(a + b for a, b in pairwise(walk.path))
        prompt = f"{edges}. {walk.path[0]}: {candidates[0]} or {candidates[1]}?"
        return Question(prompt, walk.path[-1], steps)

    def _walk(self, rng: random.Random) -> Walk:
        hops = rng.randint(*self.hops)
        names = rng.sample(SYMBOLS, self.nodes)
        size = hops + 1
        paths = names[:size], names[size : 2 * size]
        edges = [pair for path in paths for pair in pairwise(path)]
        trees = [list(path) for path in paths]
        for name in names[2 * size :]:
            tree = rng.choice(trees)
            # Not below a candidate: it stays a leaf.
            parent = rng.choice([node for node in tree if node not in (paths[0][-1], paths[1][-1])])
            tree.append(name)
            edges.append((parent, name))
        rng.shuffle(edges)
        return Walk(tuple(edges), tuple(paths[0]), paths[1][-1])

    def score(self, question: Question, reply: str) -> float:
        last = reply.strip().splitlines()[-1:] or [""]
        return float(last[0].rsplit(": ", 1)[-1].strip() == question.answer)


def _content(walk: Walk) -> str:
    """The same graph is in the same split, whatever its order."""
    return f"{sorted(walk.edges)}"
