"""Exercises of lesson 1b: a block, and the model around it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from culm.learn.exercise import Exercise, Mistake, normal, whole
from culm.model.attention.gqa import GQA
from culm.model.mlp.plain import Plain
from culm.model.norm import LayerNorm, RMSNorm
from culm.model.transformer import TransformerConfig

Map = Callable[[Tensor], Tensor]


def double(x: Tensor) -> Tensor:
    return 2 * x


def mean_of_earlier(x: Tensor) -> Tensor:
    """A stand-in for attention."""
    return x.cumsum(0) / torch.arange(1, len(x) + 1)[:, None]


def halve(x: Tensor) -> Tensor:
    return x / 2


def square(x: Tensor) -> Tensor:
    return x * x


def embed(table: Tensor, tokens: Tensor) -> Tensor:
    return F.embedding(tokens, table)


def embed_answer(table: Tensor, tokens: Tensor) -> Tensor:
    return table[tokens]


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    norm = LayerNorm(len(weight), eps, bias=True)
    norm.weight.data, norm.bias.data = weight, bias  # type: ignore[union-attr]
    return norm(x).detach()


def layer_norm_answer(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / (variance + eps).sqrt() * weight + bias


def _layer_norm_unbiased(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (x.var(-1, keepdim=True) + eps).sqrt() * weight + bias


def _layer_norm_of_tokens(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return layer_norm_answer(x.T, weight.new_ones(()), bias.new_zeros(()), eps).T * weight + bias


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    norm = RMSNorm(len(weight), eps)
    norm.weight.data = weight
    return norm(x).detach()


def rms_norm_answer(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def _rms_norm_by_sum(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) + eps).sqrt() * weight


def _rms_norm_centred(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return rms_norm_answer(x - x.mean(-1, keepdim=True), weight, eps)


def feed_forward(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return F.linear(F.relu(F.linear(x, up)), down)


def feed_forward_answer(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return (x @ up.T).clamp_min(0) @ down.T


def add_branch(x: Tensor, norm: Map, branch: Map) -> Tensor:
    return x + branch(norm(x))


def block(x: Tensor, norm1: Map, attention: Map, norm2: Map, mlp: Map) -> Tensor:
    return add_branch(add_branch(x, norm1, attention), norm2, mlp)


def _block_parallel(x: Tensor, norm1: Map, attention: Map, norm2: Map, mlp: Map) -> Tensor:
    return x + attention(norm1(x)) + mlp(norm2(x))


def _block_swapped(x: Tensor, norm1: Map, attention: Map, norm2: Map, mlp: Map) -> Tensor:
    return block(x, norm2, mlp, norm1, attention)


def _block_one_sum(x: Tensor, norm1: Map, attention: Map, norm2: Map, mlp: Map) -> Tensor:
    return x + mlp(norm2(attention(norm1(x))))


def logits(hidden: Tensor, table: Tensor) -> Tensor:
    return F.linear(hidden, table)


def logits_answer(hidden: Tensor, table: Tensor) -> Tensor:
    return hidden @ table.T


def parameters(vocabulary: int, width: int, layers: int, hidden: int) -> int:
    config = TransformerConfig(
        vocabulary=vocabulary, width=width, layers=layers, attention=(GQA(heads=1),),
        mlp=(Plain(hidden=hidden, activation="relu"),),
    )  # fmt: skip
    return sum(parameter.numel() for parameter in config.build(device="meta").parameters())


def parameters_answer(vocabulary: int, width: int, layers: int, hidden: int) -> int:
    attention = 4 * width * width
    mlp = 2 * width * hidden
    norms = 2 * width
    return vocabulary * width + layers * (attention + mlp + norms) + width


def _parameters_of_three(vocabulary: int, width: int, layers: int, hidden: int) -> int:
    return parameters_answer(vocabulary, width, layers, hidden) - layers * width * width


def _parameters_without_last(vocabulary: int, width: int, layers: int, hidden: int) -> int:
    return parameters_answer(vocabulary, width, layers, hidden) - width


def _parameters_untied(vocabulary: int, width: int, layers: int, hidden: int) -> int:
    return parameters_answer(vocabulary, width, layers, hidden) + vocabulary * width


EXERCISES = (
    Exercise(
        "block.embed",
        "Give each token its row of a table: table (V, E), tokens (T,) -> (T, E).",
        embed,
        lambda g: [(normal(g, 9, 4), whole(g, 9, 6)), (normal(g, 3, 2), torch.tensor([2, 2, 0]))],
        embed_answer,
        (Mistake("token 0 has the first row.", lambda table, tokens: table[tokens - 1]),),
    ),
    Exercise(
        "block.layer_norm",
        "Shift and scale each vector to mean 0 and variance 1, then times weight, plus bias.",
        layer_norm,
        lambda g: [
            (3 * normal(g, 5, 8) + 1, normal(g, 8), normal(g, 8), 1e-5),
            (torch.zeros(2, 4), normal(g, 4), normal(g, 4), 1e-5),
        ],
        layer_norm_answer,
        (
            Mistake(
                "the variance is the mean of the squares, over all E elements: torch's var divides "
                "by E - 1.",
                _layer_norm_unbiased,
            ),
            Mistake(
                "normalise each token over its elements, the last axis.", _layer_norm_of_tokens
            ),
        ),
    ),
    Exercise(
        "block.rms_norm",
        "Divide each vector by the root of the mean of its squares (plus eps), then times weight.",
        rms_norm,
        lambda g: [
            (3 * normal(g, 5, 8) + 1, normal(g, 8), 1e-5),
            (torch.zeros(2, 4), normal(g, 4), 1e-5),
            (normal(g, 2, 3, 6), normal(g, 6), 0.5),
        ],
        rms_norm_answer,
        (
            Mistake("it is the mean of the squares, not their sum.", _rms_norm_by_sum),
            Mistake("RMSNorm does not subtract the mean.", _rms_norm_centred),
            Mistake(
                "eps is added to the mean square, inside the root.",
                lambda x, w, eps: x / (x.square().mean(-1, keepdim=True).sqrt() + eps) * w,
            ),
        ),
    ),
    Exercise(
        "block.feed_forward",
        "Multiply by up (hidden, E), replace negative numbers by 0, multiply by down (E, hidden).",
        feed_forward,
        lambda g: [(normal(g, 5, 4), normal(g, 16, 4), normal(g, 4, 16))],
        feed_forward_answer,
        (
            Mistake(
                "without the step in between, two matrices are only one matrix: replace negative "
                "numbers by 0.",
                lambda x, up, down: x @ up.T @ down.T,
            ),
            Mistake(
                "the last step is a plain matmul: a branch must be able to subtract.",
                lambda x, up, down: feed_forward_answer(x, up, down).clamp_min(0),
            ),
        ),
    ),
    Exercise(
        "block.add_branch",
        "Add to x what a branch makes of the normalised x.",
        add_branch,
        lambda g: [(normal(g, 5, 4), halve, square), (normal(g, 3, 4), square, mean_of_earlier)],
        None,
        (
            Mistake("x itself is added without the norm.", lambda x, n, b: n(x) + b(n(x))),
            Mistake("add the branch to x.", lambda x, n, b: b(n(x))),
            Mistake("the norm is before the branch.", lambda x, n, b: x + n(b(x))),
        ),
    ),
    Exercise(
        "block.block",
        "First add the attention of x, then the feed-forward of the sum, each with its norm.",
        block,
        lambda g: [(normal(g, 5, 4), halve, mean_of_earlier, square, double)],
        None,
        (
            Mistake("the feed-forward reads the sum of x and the attention.", _block_parallel),
            Mistake("attention comes first.", _block_swapped),
            Mistake("each of the two branches is added, so there are two sums.", _block_one_sum),
        ),
    ),
    Exercise(
        "block.logits",
        "Score every token of the vocabulary: the dot product of the state with its row, (T, V).",
        logits,
        lambda g: [(normal(g, 5, 4), normal(g, 9, 4)), (normal(g, 2, 3, 4), normal(g, 6, 4))],
        logits_answer,
        (Mistake("these are scores, without a softmax.", lambda h, t: (h @ t.T).softmax(-1)),),
    ),
    Exercise(
        "block.parameters",
        "Count the parameters of a model with a shared table, blocks with two RMSNorms, and one "
        "norm at the end.",
        parameters,
        lambda g: [(256, 64, 2, 256), (1000, 96, 1, 100), (50, 8, 12, 32)],
        parameters_answer,
        (
            Mistake("attention has four matrices: q, k, v and the output.", _parameters_of_three),
            Mistake("there is one more norm after the last block.", _parameters_without_last),
            Mistake("the output head shares the table of the embedding.", _parameters_untied),
        ),
    ),
)
