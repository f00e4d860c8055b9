"""Exercises of lesson 1a: attention."""

from __future__ import annotations

import torch
from torch import Tensor

from culm.learn.exercise import Exercise, Mistake, normal
from culm.model import attend as library
from culm.model.context import Context
from culm.model.score_rule import ScoreRule


def _single(x: Tensor) -> Tensor:
    """(T, D) -> (1, T, 1, D), one row and one head."""
    return x[None, :, None]


def softmax(scores: Tensor) -> Tensor:
    return torch.softmax(scores, dim=-1)


def softmax_answer(scores: Tensor) -> Tensor:
    powers = (scores - scores.amax(-1, keepdim=True)).exp()
    return powers / powers.sum(-1, keepdim=True)


def _softmax_of_columns(scores: Tensor) -> Tensor:
    return torch.softmax(scores, dim=0)


def _softmax_of_large(scores: Tensor) -> Tensor:
    return scores.exp() / scores.exp().sum(-1, keepdim=True)


def scores(q: Tensor, k: Tensor) -> Tensor:
    every = torch.ones(1, 1, len(q), len(k), dtype=torch.bool)
    q, k = (_single(x).transpose(1, 2) for x in (q, k))
    return library.scores_of(q, k, every, ScoreRule(), None)[0, 0, 0]


def scores_answer(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.T / q.shape[-1] ** 0.5


def causal_mask(length: int) -> Tensor:
    context = Context(torch.arange(length)[None])
    return library.visible(0, length, 0, length, context, ScoreRule())[0, 0]


def causal_mask_answer(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril()


def weights(q: Tensor, k: Tensor) -> Tensor:
    return library.attention_weights(_single(q), _single(k))[0, 0]


def weights_answer(q: Tensor, k: Tensor) -> Tensor:
    found = scores_answer(q, k).masked_fill(~causal_mask_answer(len(q)), float("-inf"))
    return softmax_answer(found)


def _weights_without_mask(q: Tensor, k: Tensor) -> Tensor:
    return softmax_answer(scores_answer(q, k))


def _weights_masked_late(q: Tensor, k: Tensor) -> Tensor:
    return softmax_answer(scores_answer(q, k)) * causal_mask_answer(len(q))


def _weights_of_zeros(q: Tensor, k: Tensor) -> Tensor:
    return softmax_answer(scores_answer(q, k) * causal_mask_answer(len(q)))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    context = Context(torch.arange(len(q))[None])
    return library.attend(_single(q), _single(k), _single(v), context)[0, :, 0]


def attend_answer(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return weights_answer(q, k) @ v


def _attend_transposed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return weights_answer(q, k).T @ v


def split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1))


def _split_by_size(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (-1, heads)).transpose(1, 2)


def multi_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return library.attend(q, k, v, Context.plain(q))


def multi_head_answer(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, T, D)
    found = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    mask = causal_mask_answer(q.shape[2])
    shares = softmax_answer(found.masked_fill(~mask, float("-inf")))
    return (shares @ v).transpose(1, 2)


def _heads_scaled_by_width(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return multi_head_answer(q * q.shape[2] ** -0.5, k, v)


def _attends_over_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    found = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return softmax_answer(found) @ v


def _pairs(g: torch.Generator) -> list[tuple[Tensor, ...]]:
    return [(normal(g, t, d), normal(g, t, d)) for t, d in ((5, 4), (1, 8), (7, 3))]


def _triples(g: torch.Generator) -> list[tuple[Tensor, ...]]:
    return [tuple(normal(g, 5, 4) for _ in range(3)), tuple(normal(g, 1, 8) for _ in range(3))]


EXERCISES = (
    Exercise(
        "attention.softmax",
        "Turn each row of scores into positive shares that sum to 1, also for large scores.",
        softmax,
        lambda g: [(normal(g, 3, 5),), (normal(g, 2, 4) * 1000,), (torch.zeros(1, 3),)],
        softmax_answer,
        (
            Mistake(
                "the shares of a row must sum to 1: sum over the last axis.", _softmax_of_columns
            ),
            Mistake(
                "each row has its own sum: .sum(-1, keepdim=True) gives them as a column.",
                lambda scores: scores.exp() / scores.exp().sum(),
            ),
            Mistake(
                "e^1000 is infinite. Subtract the largest score of the row first: the shares stay "
                "the same.",
                _softmax_of_large,
            ),
        ),
    ),
    Exercise(
        "attention.scores",
        "Score every query (T, D) against every key (T, D): their dot product over the square root "
        "of D, in a matrix (T, T).",
        scores,
        _pairs,
        scores_answer,
        (
            Mistake("divide by the square root of D.", lambda q, k: q @ k.T),
            Mistake(
                "you divided by D; it is the square root of D.", lambda q, k: q @ k.T / q.shape[-1]
            ),
            Mistake("row t must be the query t: q on the left.", lambda q, k: scores_answer(k, q)),
        ),
    ),
    Exercise(
        "attention.causal_mask",
        "Say which tokens each token may read: itself and those before it, in a matrix (T, T) of "
        "True and False.",
        causal_mask,
        lambda g: [(5,), (1,), (2,)],
        causal_mask_answer,
        (
            Mistake(
                "a token reads itself too: the diagonal is True.",
                lambda n: torch.ones(n, n, dtype=torch.bool).tril(-1),
            ),
            Mistake(
                "row t is the token that reads: it sees the columns up to t.",
                lambda n: torch.ones(n, n, dtype=torch.bool).triu(),
            ),
        ),
    ),
    Exercise(
        "attention.weights",
        "Combine scores, mask and softmax: the share that each token takes from each earlier one.",
        weights,
        _pairs,
        weights_answer,
        (
            Mistake("tokens must not read what follows: apply the mask.", _weights_without_mask),
            Mistake(
                "mask before the softmax, with -infinity: otherwise the shares do not sum to 1.",
                _weights_masked_late,
            ),
            Mistake(
                "a score of 0 still gets a share, since e^0 = 1. Use -infinity.", _weights_of_zeros
            ),
        ),
    ),
    Exercise(
        "attention.attend",
        "Give each token the sum of the values (T, D), each times its share.",
        attend,
        _triples,
        attend_answer,
        (Mistake("row t of the weights belongs to the result t.", _attend_transposed),),
    ),
    Exercise(
        "attention.split_heads",
        "Cut vectors (T, E) into heads of equal size: (T, heads, E / heads).",
        split_heads,
        lambda g: [(normal(g, 5, 12), 3), (normal(g, 2, 8), 1), (normal(g, 3, 8), 4)],
        None,
        (
            Mistake("elements that are neighbours belong to the same head.", _split_by_size),
            Mistake("the head is the second axis.", lambda x, h: split_heads(x, h).transpose(0, 1)),
        ),
    ),
    Exercise(
        "attention.multi_head",
        "Attend in all heads of all rows at once: q, k, v and the result are (B, T, H, D).",
        multi_head,
        lambda g: [
            tuple(normal(g, 2, 6, 3, 4) for _ in range(3)),
            tuple(normal(g, 1, 1, 2, 4) for _ in range(3)),
        ],
        multi_head_answer,
        (
            Mistake("the scale is the size of a head, not of all heads.", _heads_scaled_by_width),
            Mistake(
                "matmul works on the last two axes: they must be tokens and elements, so move the "
                "heads before the tokens.",
                _attends_over_heads,
            ),
        ),
    ),
)
