"""Random numbers that depend on the seed and their purpose alone, never on the order of calls.

So a step gets the same numbers after a resume, on any number of ranks, and in any batch.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np


def keyed(seed: int, *purpose: object) -> random.Random:
    """The generator of one purpose: `keyed(0, "sample", row)`."""
    return random.Random("/".join(map(str, (seed, *purpose))))


def keyed_integer(seed: int, *purpose: object) -> int:
    """A 62-bit integer, as a seed for other generators."""
    return keyed(seed, *purpose).getrandbits(62)


def keyed_digest(seed: int, purpose: str) -> int:
    """A 63-bit integer from SHA-256, the same in every version of Python."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def keyed_permutation(values: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The values in the random order of an epoch."""
    return np.random.default_rng((seed, epoch)).permutation(values)


def keyed_draw(count: int, size: int, seed: int, step: int) -> np.ndarray:
    """`size` numbers below `count` in random order, none more often than another by two."""
    chance = np.random.default_rng((seed, step, 1))  # other numbers than an epoch has
    every, rest = divmod(size, count)
    drawn = [np.tile(np.arange(count), every), chance.choice(count, rest, replace=False)]
    return chance.permutation(np.concatenate(drawn))
