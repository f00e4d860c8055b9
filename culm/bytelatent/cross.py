"""Cross-attention between the bytes and the patches of BLT (arXiv 2412.09871, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from culm.model.linear import Linear
from culm.model.norm import NormConfig


def attended(q: Tensor, k: Tensor, v: Tensor, heads: int, there: Tensor | None = None) -> Tensor:
    """Each query (..., E) over its own keys and values (..., S, E); there: (..., S) bool."""
    q = q.unflatten(-1, (heads, -1))
    k, v = (x.unflatten(-1, (heads, -1)).transpose(-3, -2) for x in (k, v))  # (..., H, S, D)
    scores = (k @ q[..., None])[..., 0].float() * q.shape[-1] ** -0.5
    if there is not None:
        scores = scores.masked_fill(~there[..., None, :], float("-inf"))
    weights = scores.softmax(-1).to(v.dtype)
    return (weights[..., None, :] @ v)[..., 0, :].flatten(-2)


class BytesToPatches(nn.Module):
    """A patch from its bytes: their maximum, projected, plus attention of that over them."""

    def __init__(self, width: int, latent: int, heads: int, norm: NormConfig) -> None:
        super().__init__()
        self.heads, self.norm, self.query_norm = heads, norm.build(width), norm.build(latent)
        self.start = Linear(width, latent)
        self.q, self.k, self.v = (Linear(size, width) for size in (latent, width, width))
        self.out = Linear(width, latent, residual=True)

    def keys(self, states: Tensor) -> Tensor:
        """What the patch reads of each byte: its state, key and value, (B, T, 3 E)."""
        x = self.norm(states)
        return torch.cat((states, self.k(x), self.v(x)), -1)

    def forward(self, window: Tensor, there: Tensor) -> Tensor:
        """window: (B, N, M, 3 E), `keys` of the bytes; there: (B, N, M) bool -> (B, N, G)."""
        states, k, v = window.chunk(3, -1)
        most = states.masked_fill(~there[..., None], float("-inf")).amax(2)
        x = self.start(most)
        return x + self.out(attended(self.q(self.query_norm(x)), k, v, self.heads, there))


class PatchesToBytes(nn.Module):
    """A byte reads its patch, which is divided into a few slots."""

    def __init__(self, width: int, latent: int, slots: int, heads: int, norm: NormConfig) -> None:
        super().__init__()
        self.slots, self.heads, self.norm = slots, heads, norm.build(width)
        self.kv = Linear(latent // slots, 2 * width)
        self.q, self.out = Linear(width, width), Linear(width, width, residual=True)

    def keys(self, latent: Tensor) -> Tensor:
        """(B, N, slots * 2 E): keys and values of the slots of each patch (B, N, G)."""
        return self.kv(latent.unflatten(-1, (self.slots, -1))).flatten(-2)

    def forward(self, states: Tensor, keys: Tensor) -> Tensor:
        """states: (B, T, E); keys: (B, T, slots * 2 E), of the patch of each -> (B, T, E)."""
        k, v = keys.unflatten(-1, (self.slots, -1)).chunk(2, -1)
        return states + self.out(attended(self.q(self.norm(states)), k, v, self.heads))
