"""A directed graph from a file of edges: a line has a child and its parent, separated by a tab.

    dog.n.01 <tab> canine.n.02

Commas separate the columns of a .csv file; .gz, .bz2 and .zst are decompressed. A first line of
`id1 id2`, `child parent` or `source target` is a header; further columns, such as weights, are not
read.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from culm.config import SettingError, did_you_mean
from culm.source.compressed import UNREADABLE, opened

HEADERS = {("id1", "id2"), ("child", "parent"), ("source", "target")}
SHOWN = 6  # nodes of a cycle in a message
Cycles = Literal["error", "keep"]


@dataclass(frozen=True)
class Graph:
    """names: of the nodes, in the order of the file. edges: (E, 2) int64, child and parent, each
    pair once. remarks: what was left out, a sentence each.
    """

    names: tuple[str, ...]
    edges: np.ndarray
    remarks: tuple[str, ...] = field(default=())

    @cached_property
    def index(self) -> dict[str, int]:
        """The number of each node by its name."""
        return {name: number for number, name in enumerate(self.names)}

    def number(self, name: str) -> int:
        """The number of a node.

        Raises:
            SettingError: there is no such node.
        """
        if name not in self.index:
            raise SettingError(f"{name}: no such node{did_you_mean(name, self.names[:20_000])}")
        return self.index[name]

    @cached_property
    def keys(self) -> np.ndarray:
        """(E,) sorted child * nodes + parent, in which pairs are looked up."""
        return np.sort(self.edges[:, 0] * len(self.names) + self.edges[:, 1])

    @property
    def has_negatives(self) -> bool:
        """Whether a child has another node that is not its parent."""
        parents = np.bincount(self.edges[:, 0])
        return bool((parents[parents > 0] < len(self.names) - 1).any())

    def has(self, children: np.ndarray, parents: np.ndarray) -> np.ndarray:
        """Whether each pair of node numbers is an edge; both broadcast."""
        wanted = children * len(self.names) + parents
        at = np.searchsorted(self.keys, wanted).clip(max=len(self.keys) - 1)
        return self.keys[at] == wanted

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the names and the edges."""
        digest = hashlib.sha256("\n".join(self.names).encode())
        digest.update(np.ascontiguousarray(self.edges).tobytes())
        return digest.hexdigest()


def read_graph(path: Path, closure: bool = False, cycles: Cycles = "error") -> Graph:
    """The graph of a file. closure: add an edge to every ancestor (the transitive closure).

    Raises:
        SettingError: the file is not there, has no edge, has a line of one column, or edges in a
            circle, which are refused unless `cycles` is keep.
    """
    names: dict[str, int] = {}
    pairs: dict[tuple[int, int], None] = {}
    notes = Counter[str]()
    for child, parent in _rows(path, notes):
        pair = tuple(names.setdefault(name, len(names)) for name in (child, parent))
        notes["repeated edges were left out"] += pair in pairs
        notes["edges from a node to itself were left out"] += child == parent
        if child != parent:
            pairs[pair] = None  # type: ignore[index]
    if not pairs:
        raise SettingError(f"data.path: {path} has no edges; a line has a child, a tab, a parent")
    edges = np.array(list(pairs), dtype=np.int64)
    if cycles == "error":
        _refuse_cycles(edges, list(names))
    remarks = [f"{count:,} {what}." for what, count in notes.items() if count]
    if closure:
        before, edges = len(edges), transitive_closure(edges, len(names))
        remarks.append(f"The transitive closure added {len(edges) - before:,} edges.")
    return Graph(tuple(names), edges, tuple(remarks))


def _rows(path: Path, notes: Counter[str]) -> Iterator[tuple[str, str]]:
    """Child and parent of each line. notes: counts what was not read, by a phrase."""
    if not path.is_file():
        raise SettingError(f"data.path: there is no file {path}")
    comma = ".csv" in path.suffixes
    try:
        with opened(path) as file:
            for number, line in enumerate(file, start=1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip("\r\n")
                cells = [cell.strip() for cell in text.split("," if comma else "\t")]
                if not text.strip():
                    continue
                if number == 1 and tuple(cells[:2]) in HEADERS:
                    notes[f"line is a header ({' '.join(cells[:2])}) and no edge"] += 1
                    continue
                notes["lines have further columns, which are not read"] += len(cells) > 2
                if len(cells) < 2 or not (cells[0] and cells[1]):
                    between = "a comma" if comma else "a tab"
                    raise SettingError(
                        f"data.path: {path}, line {number}: {text[:60]!r} is no edge; give a child "
                        f"and a parent with {between} between them"
                    )
                yield cells[0], cells[1]
    except (UnicodeDecodeError, *UNREADABLE) as error:
        raise SettingError(f"data.path: {path} cannot be read as UTF-8 text: {error}") from error


def transitive_closure(edges: np.ndarray, nodes: int) -> np.ndarray:
    """(E, 2) -> (F, 2): the edges of every node to each that can be reached from it."""
    parents = _parents(edges, nodes)
    found: dict[int, set[int]] = {}
    for start in range(nodes):
        stack = [start]
        while stack:
            node = stack[-1]
            if node in found:
                stack.pop()
            elif waiting := [one for one in parents[node] if one not in found]:
                stack += waiting
            else:
                found[node] = set(parents[node]).union(*(found[one] for one in parents[node]))
                stack.pop()
    return np.array(
        [(node, one) for node in range(nodes) for one in sorted(found[node])], dtype=np.int64
    )


def _parents(edges: np.ndarray, nodes: int) -> list[list[int]]:
    parents: list[list[int]] = [[] for _ in range(nodes)]
    for child, parent in edges.tolist():
        parents[child].append(parent)
    return parents


def _refuse_cycles(edges: np.ndarray, names: list[str]) -> None:
    """Remove nodes without children, one after the other; those that stay lie on circles, or above
    one.
    """
    parents, children = _parents(edges, len(names)), np.bincount(edges[:, 1], minlength=len(names))
    free = [node for node in range(len(names)) if not children[node]]
    kept = set(range(len(names)))
    while free:
        node = free.pop()
        kept.discard(node)
        for parent in parents[node]:
            children[parent] -= 1
            if not children[parent]:
                free.append(parent)
    if not kept:
        return
    # Of the nodes that stay, each has a child that stays: going down ends in a circle.
    child_of = {p: node for node in kept for p in parents[node]}
    path = [next(iter(sorted(kept)))]
    while child_of[path[-1]] not in path:
        path.append(child_of[path[-1]])
    circle = path[path.index(child_of[path[-1]]) :][::-1]
    shown = " -> ".join(names[node] for node in [*circle[:SHOWN], circle[0]])
    raise SettingError(
        f"data.path: {shown} is a circle of {len(circle)} edges; correct it, or set "
        "data.cycles=keep and data.closure=false for a graph that is no hierarchy"
    )
