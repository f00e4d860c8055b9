"""A transformer in plain PyTorch, as it is written by hand: what Culm is compared with on a GPU.

Nothing of Culm is in its forward; its weights are copies of a Culm model's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from culm.model.attention.gqa import GQA
from culm.model.transformer import Transformer


class PlainAttention(nn.Module):
    """Causal attention with rotated, grouped keys, by `scaled_dot_product_attention`."""

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.dim = width // heads
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, kv_heads * self.dim, bias=False)
        self.v = nn.Linear(width, kv_heads * self.dim, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (-1, self.dim)).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        q, k = (rotated(each, cosines, sines) for each in (q, k))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class PlainBlock(nn.Module):
    def __init__(self, width: int, heads: int, kv_heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, eps)
        self.attention = PlainAttention(width, heads, kv_heads)
        self.mlp_norm = nn.RMSNorm(width, eps)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cosines, sines)
        y = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class PlainLlama(nn.Module):
    """The mean loss of ids (B, T + 1), in nats, with the weights of a Culm model of this shape."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        shape, attention = model.config, model.config.attention[0]
        assert isinstance(attention, GQA)
        assert attention.rope is not None
        self.embed = nn.Embedding(shape.vocabulary, shape.width)
        self.blocks = nn.ModuleList(
            PlainBlock(
                shape.width,
                attention.heads,
                attention.kv_heads,
                shape.mlp[0].hidden,
                shape.norm.eps,
            )
            for _ in range(shape.layers)
        )
        self.norm = nn.RMSNorm(shape.width, shape.norm.eps)
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)
        if shape.tied:
            self.head.weight = self.embed.weight
        dim = shape.width // attention.heads
        rates = attention.rope.base ** -(torch.arange(0, dim, 2) / dim)
        angles = torch.arange(shape.context)[:, None] * rates
        self.register_buffer("cosines", angles.cos(), persistent=False)
        self.register_buffer("sines", angles.sin(), persistent=False)
        with torch.no_grad():
            for (name, own), (other, theirs) in zip(
                sorted(self.named_parameters()), sorted(renamed(model)), strict=True
            ):
                assert name == other, (name, other)
                own.copy_(theirs)

    def forward(self, ids: Tensor) -> Tensor:
        inputs, targets = ids[:, :-1], ids[:, 1:]
        x, length = self.embed(inputs), inputs.shape[1]
        cosines, sines = (part[:length].to(x.dtype) for part in (self.cosines, self.sines))
        for block in self.blocks:
            x = block(x, cosines, sines)
        logits = self.head(self.norm(x)).float()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def rotated(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((first * cosines - second * sines, second * cosines + first * sines), -1)


def renamed(model: Transformer) -> list[tuple[str, Tensor]]:
    """The weights of a Culm model under the names of this file."""
    return [(name.replace(".mlp.", "."), weight) for name, weight in model.named_parameters()]
