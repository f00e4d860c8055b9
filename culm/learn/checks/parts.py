"""Exercises of lesson 3a: rotary positions, gated feed-forwards, grouped and latent attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from culm.learn.exercise import Exercise, Mistake, normal
from culm.learn.practice import small
from culm.model import attend as library
from culm.model import rope
from culm.model.attention.gqa import GQA
from culm.model.attention.mla import MLA, LatentAttention
from culm.model.context import Context, LayerContext
from culm.model.mlp.gated import GatedFeedForward, SwiGLU
from culm.plan.model import cost_of


def frequencies(base: float, dim: int) -> Tensor:
    return rope.frequencies(base, dim).float()


def frequencies_answer(base: float, dim: int) -> Tensor:
    return base ** -(torch.arange(0, dim, 2) / dim)


def rotate(x: Tensor, positions: Tensor, base: float) -> Tensor:
    rotation = rope.Rope(base=base).build(x.shape[-1])
    return rope.rotate(x[None, :, None], rotation(positions[None]))[0, :, 0]


def rotate_answer(x: Tensor, positions: Tensor, base: float) -> Tensor:
    angles = positions[:, None] * frequencies_answer(base, x.shape[-1])
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _rotate_neighbours(x: Tensor, positions: Tensor, base: float) -> Tensor:
    angles = positions[:, None] * frequencies_answer(base, x.shape[-1])
    first, second = x[:, ::2], x[:, 1::2]
    parts = (
        first * angles.cos() - second * angles.sin(),
        second * angles.cos() + first * angles.sin(),
    )
    return torch.stack(parts, -1).flatten(-2)


def _rotate_backwards(x: Tensor, positions: Tensor, base: float) -> Tensor:
    return rotate_answer(x, -positions, base)


def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    layer = GatedFeedForward(x.shape[-1], len(gate), "silu")
    layer.gate.weight.data, layer.up.weight.data, layer.down.weight.data = gate, up, down
    return layer(x, LayerContext(torch.arange(len(x))[None])).detach()


def swiglu_answer(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    opened = x @ gate.T
    opened = opened * opened.sigmoid()
    return (opened * (x @ up.T)) @ down.T


def _glu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return ((x @ gate.T).sigmoid() * (x @ up.T)) @ down.T


def _swiglu_swapped(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return swiglu_answer(x, up, gate, down)


def inner_width(width: int) -> int:
    return SwiGLU().inner(width)


def inner_width_answer(width: int) -> int:
    wanted = 8 * width / 3
    return int(-(-wanted // 32) * 32)


def _inner_width_down(width: int) -> int:
    return int(8 * width / 3 // 32 * 32)


def grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return library.attend(q, k, v, Context.plain(q))


def grouped_answer(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    group = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(group, dim=2) for x in (k, v))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def _grouped_in_turn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    group = q.shape[2] // k.shape[2]
    return grouped_answer(q, k.repeat(1, 1, group, 1), v.repeat(1, 1, group, 1))


def cache_bytes(layers: int, kv_heads: int, head_dim: int) -> int:
    attention = GQA(heads=kv_heads * 2, kv_heads=kv_heads, head_dim=head_dim)
    return cost_of(small(attention, width=32, layers=layers), 8).cache_bytes


def cache_bytes_answer(layers: int, kv_heads: int, head_dim: int) -> int:
    return layers * 2 * kv_heads * head_dim * 2


def latent_keys(latent: Tensor, up: Tensor, shared: Tensor) -> Tensor:
    rank, heads = latent.shape[-1], up.shape[0]
    config = MLA(heads=heads, rank=rank, head_dim=up.shape[1], rope_dim=shared.shape[-1])
    layer = small(config, width=32, layers=1).build().every_block[0].attention
    assert isinstance(layer, LatentAttention)
    layer.k.weight.data = up.flatten(0, 1)
    return layer._keys(latent[None], shared[None, :, None])[0].detach()


def latent_keys_answer(latent: Tensor, up: Tensor, shared: Tensor) -> Tensor:
    own = torch.einsum("tr,hdr->thd", latent, up)
    return torch.cat((own, shared[:, None].expand(-1, len(up), -1)), dim=-1)


def _latent_keys_first(latent: Tensor, up: Tensor, shared: Tensor) -> Tensor:
    return latent_keys_answer(latent, up, shared).roll(shared.shape[-1], -1)


def absorbed_scores(q: Tensor, latent: Tensor, up: Tensor) -> Tensor:
    keys = torch.einsum("tr,hdr->thd", latent, up)
    return torch.einsum("thd,shd->hts", q, keys)


def absorbed_scores_answer(q: Tensor, latent: Tensor, up: Tensor) -> Tensor:
    moved = torch.einsum("thd,hdr->thr", q, up)  # the queries in the space of the latents
    return torch.einsum("thr,sr->hts", moved, latent)


def _absorbed_of_one_head(q: Tensor, latent: Tensor, up: Tensor) -> Tensor:
    return absorbed_scores_answer(q, latent, up[:1].expand(len(up), -1, -1))


def latent_cache_bytes(layers: int, rank: int, rope_dim: int) -> int:
    attention = MLA(heads=2, rank=rank, head_dim=16, rope_dim=rope_dim, value_dim=16)
    return cost_of(small(attention, width=32, layers=layers), 8).cache_bytes


def latent_cache_bytes_answer(layers: int, rank: int, rope_dim: int) -> int:
    return layers * (rank + rope_dim) * 2


def _rotations(g: torch.Generator) -> list[tuple]:
    later = torch.tensor([0, 100, 5])
    return [(normal(g, 4, 8), torch.arange(4), 10_000.0), (normal(g, 3, 6), later, 500.0)]


EXERCISES = (
    Exercise(
        "parts.frequencies",
        "Give the angle per token of each of the D / 2 pairs: base to the power of -2i / D.",
        frequencies,
        lambda g: [(10_000.0, 8), (500_000.0, 64), (10.0, 2)],
        frequencies_answer,
        (
            Mistake(
                "pair i has the exponent -2i / D, so the last is nearly -1.",
                lambda base, dim: base ** -(torch.arange(dim // 2) / dim),
            ),
            Mistake(
                "the angles get smaller: the exponent is negative.",
                lambda base, dim: base ** (torch.arange(0, dim, 2) / dim),
            ),
        ),
    ),
    Exercise(
        "parts.rotate",
        "Rotate each pair (element i, element i + D / 2) by its position times the pair's angle.",
        rotate,
        _rotations,
        rotate_answer,
        (
            Mistake("element i is paired with i + D / 2, not with i + 1.", _rotate_neighbours),
            Mistake("it is first * cos - second * sin: check the signs.", _rotate_backwards),
        ),
        tolerance=1e-4,
    ),
    Exercise(
        "parts.swiglu",
        "Compute down (silu(gate x) * up x), where silu(z) is z times the sigmoid of z.",
        swiglu,
        lambda g: [tuple(normal(g, *shape) for shape in ((5, 4), (6, 4), (6, 4), (4, 6)))],
        swiglu_answer,
        (
            Mistake("silu is z * sigmoid(z), not the sigmoid alone.", _glu),
            Mistake("silu is applied to the gate.", _swiglu_swapped),
        ),
    ),
    Exercise(
        "parts.inner_width",
        "Give 8/3 of the width, rounded up to a multiple of 32.",
        inner_width,
        lambda g: [(64,), (96,), (768,), (4096,)],
        inner_width_answer,
        (
            Mistake("round up.", _inner_width_down),
            Mistake("three matrices instead of two: 8/3, not 4.", lambda width: 4 * width),
        ),
    ),
    Exercise(
        "parts.grouped",
        "Attend with H heads of queries and K heads of keys and values; H / K neighbours share.",
        grouped,
        lambda g: [
            (normal(g, 2, 5, 4, 8), normal(g, 2, 5, 2, 8), normal(g, 2, 5, 2, 8)),
            (normal(g, 1, 3, 3, 4), normal(g, 1, 3, 1, 4), normal(g, 1, 3, 1, 4)),
            tuple(normal(g, 1, 2, 2, 4) for _ in range(3)),
        ],
        grouped_answer,
        (Mistake("query heads that are neighbours share a key head.", _grouped_in_turn),),
    ),
    Exercise(
        "parts.cache_bytes",
        "Count the bytes that a token adds to the cache of grouped attention in bf16 (2 bytes).",
        cache_bytes,
        lambda g: [(2, 4, 16), (3, 1, 8)],
        cache_bytes_answer,
        (
            Mistake("keys and values are stored: twice.", lambda n, k, d: n * k * d * 2),
            Mistake("a number in bf16 takes 2 bytes.", lambda n, k, d: n * 2 * k * d * 4),
        ),
    ),
    Exercise(
        "parts.latent_keys",
        "Make the keys of all heads from the latent, and append the rotated key that all share.",
        latent_keys,
        lambda g: [(normal(g, 5, 6), normal(g, 3, 4, 6), normal(g, 5, 2))],
        latent_keys_answer,
        (Mistake("the shared part comes after the part of the head.", _latent_keys_first),),
    ),
    Exercise(
        "parts.absorbed_scores",
        "Compute the scores of queries and latents without ever making a key.",
        absorbed_scores,
        lambda g: [(normal(g, 2, 3, 4), normal(g, 5, 6), normal(g, 3, 4, 6))],
        absorbed_scores_answer,
        (Mistake("each head has its own matrix.", _absorbed_of_one_head),),
    ),
    Exercise(
        "parts.latent_cache_bytes",
        "Count the bytes that a token adds to the cache of latent attention in bf16.",
        latent_cache_bytes,
        lambda g: [(2, 32, 8), (3, 16, 4)],
        latent_cache_bytes_answer,
        (
            Mistake(
                "one latent serves keys and values: not twice.",
                lambda n, rank, rope_dim: n * 2 * (rank + rope_dim) * 2,
            ),
            Mistake("the rotated key is stored too.", lambda n, rank, rope_dim: n * rank * 2),
        ),
    ),
)
