"""Exercises of lesson 5: hybrids of attention and states."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from culm.learn.exercise import Exercise, Mistake, normal
from culm.model.attention.deltanet import delta_rule

Reading = tuple[Tensor, Tensor]  # what the query reads, and the state after it


def state_step(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, decay: float, strength: float
) -> Reading:
    q, k, v = (x[None, None, None] for x in (q, k, v))
    decays, strengths = torch.full((1, 1, 1), decay), torch.full((1, 1, 1), strength)
    out, after = delta_rule(q, k, v, decays, strengths, state[None, None])
    return out[0, 0, 0], after[0, 0]


def state_step_answer(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, decay: float, strength: float
) -> Reading:
    state = state * math.exp(-decay)
    state = state + strength * torch.outer(k, v - k @ state)
    return q @ state / len(q) ** 0.5, state


def _state_only_adds(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, decay: float, strength: float
) -> Reading:
    state = state * math.exp(-decay) + strength * torch.outer(k, v)
    return q @ state / len(q) ** 0.5, state


def _state_reads_before(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, decay: float, strength: float
) -> Reading:
    _, after = state_step_answer(state, q, k, v, decay, strength)
    return q @ (state * math.exp(-decay)) / len(q) ** 0.5, after


def hybrid_bytes(tokens: int, layers: int, every: int, kv: int, state: int) -> int:
    """Of a cache in fp32: `state` numbers in a layer, keys and values of `kv` in every n-th."""
    return sum(
        4 * (2 * kv * tokens if layer % every == every - 1 else state) for layer in range(layers)
    )


def _hybrid_all_attend(tokens: int, layers: int, every: int, kv: int, state: int) -> int:
    return 4 * layers * 2 * kv * tokens


def _hybrid_grows(tokens: int, layers: int, every: int, kv: int, state: int) -> int:
    return sum(
        4 * tokens * (2 * kv if layer % every == every - 1 else state) for layer in range(layers)
    )


def _state_case(g: torch.Generator, decay: float, strength: float) -> tuple:
    key = F.normalize(normal(g, 4), dim=0)
    return normal(g, 4, 3), normal(g, 4), key, normal(g, 3), decay, strength


EXERCISES = (
    Exercise(
        "hybrid.state_step",
        "Let the state decay, replace the value of the key by the new one, and read the query.",
        state_step,
        lambda g: [_state_case(g, 0.1, 0.7), _state_case(g, 0.0, 1.0)],
        state_step_answer,
        (
            Mistake("the old value of the key is removed first: v - k S.", _state_only_adds),
            Mistake("a token reads after it has written.", _state_reads_before),
        ),
    ),
    Exercise(
        "hybrid.hybrid_bytes",
        "Count the bytes of a cache in fp32 where every n-th layer stores all tokens, the others a "
        "state.",
        hybrid_bytes,
        lambda g: [(100, 8, 4, 32, 500), (1, 3, 1, 4, 9), (10, 5, 4, 8, 100)],
        None,
        (
            Mistake("only every n-th layer stores the tokens.", _hybrid_all_attend),
            Mistake("a state does not grow with the text.", _hybrid_grows),
        ),
    ),
)
