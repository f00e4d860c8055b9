"""Gated DeltaNet (arXiv 2412.06464): linear attention whose memory is a matrix of fixed size.

Every head has a state S (D, Dv) that maps keys to values. A token lets it decay, replaces the entry
of its key by its value, and reads the entry of its query:

    S <- exp(-decay) S          S <- S + strength * k (v - k S)          out = q S / sqrt(D)

Training and prompts compute chunks of tokens, decoding computes single tokens, both in fp32. It is
the layer of Qwen3-Next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from culm.model.attention.part import AttentionConfig, AttentionModule
from culm.model.cache import StateCache
from culm.model.context import LayerContext
from culm.model.init import CustomInit
from culm.model.layer_cache import CacheSpec, LayerCache
from culm.model.linear import Linear
from culm.model.norm import NormConfig, RMSNorm

CHUNK = 64  # tokens


class DeltaNet(AttentionConfig):
    """heads: each with a state. key_heads: heads of queries and keys, heads if not given.

    head_dim: of queries and keys, width / heads if not given; value_dim: of values, head_dim if
    not given. kernel: width of the short convolution before q, k and v, in tokens.
    """

    kind: Literal["deltanet"] = "deltanet"
    heads: PositiveInt
    key_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    value_dim: PositiveInt | None = None
    kernel: PositiveInt = 4

    @model_validator(mode="after")
    def _fits(self) -> DeltaNet:
        if self.key_heads is not None and self.heads % self.key_heads:
            raise ValueError(f"key_heads: {self.key_heads} does not divide heads={self.heads}")
        return self

    def resolved(self, width: int) -> DeltaNet:
        if self.head_dim is None and width % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide width={width}")
        dim = self.head_dim or width // self.heads
        sizes = {"head_dim": dim, "value_dim": self.value_dim or dim}
        return self.model_copy(update={"key_heads": self.key_heads or self.heads, **sizes})

    def build(self, width: int, norm: NormConfig, rotation: int) -> GatedDeltaNet:
        return GatedDeltaNet(self, width, norm)


class GatedDeltaNet(AttentionModule, CustomInit):
    """x: (B, T, E) -> (B, T, E)."""

    context_parallel = False

    def __init__(self, config: DeltaNet, width: int, norm: NormConfig) -> None:
        super().__init__()
        c = config.resolved(width)
        assert c.key_heads is not None
        assert c.head_dim is not None
        assert c.value_dim is not None
        self.heads, self.head_dim, self.value_dim = c.heads, c.head_dim, c.value_dim
        self.kernel = c.kernel
        keys, values = c.key_heads * c.head_dim, c.heads * c.value_dim
        self.sizes = (keys, keys, values)
        self.q, self.k = Linear(width, keys), Linear(width, keys)
        self.v, self.gate = Linear(width, values), Linear(width, values)
        self.decay, self.strength = Linear(width, c.heads), Linear(width, c.heads)
        self.out = Linear(values, width, residual=True)
        self.mix = nn.Parameter(torch.empty(2 * keys + values, c.kernel))  # of the convolution
        self.log_rate = nn.Parameter(torch.empty(c.heads))
        self.time = nn.Parameter(torch.empty(c.heads))
        self.norm = RMSNorm(c.value_dim, norm.eps)

    def init_weights(self, generator: Callable[[str], torch.Generator], std: float) -> None:
        """As Mamba 2: rates up to 16, time steps log-uniform from 0.001 to 0.1."""

        def uniform(like: Tensor, name: str, low: float, high: float) -> Tensor:
            return torch.empty(like.shape).uniform_(low, high, generator=generator(name))

        bound = self.kernel**-0.5
        self.mix.copy_(uniform(self.mix, "mix", -bound, bound))
        self.log_rate.copy_(uniform(self.log_rate, "log_rate", 0.01, 16.0).log())
        step = 10.0 ** uniform(self.time, "time", -3.0, -1.0)
        self.time.copy_(step.expm1().log())  # softplus of it is the step

    def forward(self, x: Tensor, context: LayerContext, cache: LayerCache | None) -> Tensor:
        assert cache is None or isinstance(cache, StateCache)
        fresh = torch.cat((self.q(x), self.k(x), self.v(x)), -1)
        state, earlier = cache.read(context) if cache else self._empty(len(x), x)
        strength = self.strength(x).float().sigmoid()
        decay = self.log_rate.float().exp() * F.softplus(self.decay(x).float() + self.time.float())
        real = None
        ends = None if context.cache is None else context.cache.ends
        if ends is not None:  # padding neither decays the state nor writes to it
            real = context.positions < ends[:, None]
            strength, decay = strength * real[..., None], decay * real[..., None]
        inputs = torch.cat((earlier.to(fresh.dtype), fresh), 1)
        q, k, v = self._heads(_convolved(inputs, self.mix, context.documents))
        heads, state = delta_rule(q, k, v, decay, strength, state, context.documents)
        if cache:
            cache.write(context, state, self._last(inputs, real))
        gate = F.silu(self.gate(x).float()).unflatten(-1, (-1, self.value_dim))
        return self.out((self.norm(heads) * gate).flatten(-2).to(x.dtype))

    def _heads(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys (B, T, H, D) of norm 1, and values (B, T, H, Dv), in fp32."""
        q, k, v = F.silu(mixed.float()).split(self.sizes, -1)
        q, k = (_unit(part.unflatten(-1, (-1, self.head_dim))) for part in (q, k))
        v = v.unflatten(-1, (-1, self.value_dim))
        group = v.shape[2] // k.shape[2]
        return q.repeat_interleave(group, 2), k.repeat_interleave(group, 2), v

    def _last(self, inputs: Tensor, real: Tensor | None) -> Tensor:
        """(B, kernel - 1, C): inputs that the convolution of the next token needs."""
        count = self.kernel - 1
        if real is None:
            return inputs[:, inputs.shape[1] - count :]
        places = real.sum(1)[:, None] + torch.arange(count, device=inputs.device)
        return inputs.gather(1, places[..., None].expand(-1, -1, inputs.shape[2]))

    def _empty(self, rows: int, like: Tensor) -> tuple[Tensor, Tensor]:
        state = torch.zeros(
            rows, self.heads, self.head_dim, self.value_dim, device=like.device
        )  # in fp32, since it accumulates over the sequence
        earlier = torch.zeros(
            rows, self.kernel - 1, sum(self.sizes), dtype=like.dtype, device=like.device
        )
        return state, earlier

    def cache(self, spec: CacheSpec) -> LayerCache:
        return StateCache(self._empty(spec.slots, spec.zeros(0)))


def _unit(x: Tensor) -> Tensor:
    return x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()


def _convolved(inputs: Tensor, weight: Tensor, documents: Tensor | None) -> Tensor:
    """Causal convolution of each channel, within documents (B, T) -> (B, T, C).

    inputs: (B, K - 1 + T, C), the first K - 1 from earlier tokens; weight: (C, K).
    """
    kernel = weight.shape[1]
    length = inputs.shape[1] - kernel + 1
    weight = weight.to(inputs.dtype)
    out = inputs[:, kernel - 1 :] * weight[:, -1]
    for back in range(1, kernel):
        start = kernel - 1 - back
        part = inputs[:, start : start + length] * weight[:, start]
        if documents is not None:  # earlier inputs belong to the first document
            before = torch.cat((documents[:, :1].expand(-1, back), documents), 1)[:, :length]
            part = part * (before == documents)[..., None]
        out = out + part
    return out


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    strength: Tensor,
    state: Tensor,
    documents: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """What each query reads from the state after its token.

    q, k: (B, T, H, D), keys of norm up to 1; v: (B, T, H, Dv); decay >= 0 and strength in [0, 1]:
    (B, T, H); state: (B, H, D, Dv) before the first token; documents: (B, T), each after the first
    of a row starts with a state of zeros. All fp32.
    Returns (B, T, H, Dv) and the state after the last token.
    """
    q = q * q.shape[-1] ** -0.5
    tensors = tuple(x.transpose(1, 2) for x in (q, k, v, decay[..., None], strength[..., None]))
    if q.shape[1] == 1 and documents is None:
        out, state = _step(tensors, state)
        return out.transpose(1, 2), state
    outs, before = [], None if documents is None else documents[:, :1]
    for start in range(0, q.shape[1], chunk):
        parts = tuple(x[:, :, start : start + chunk] for x in tensors)
        inside = None if documents is None else documents[:, start : start + chunk]
        out, state = _chunk(parts, state, inside, before)
        before = None if inside is None else inside[:, -1:]
        outs.append(out)
    return torch.cat(outs, 2).transpose(1, 2), state


def _step(tensors: tuple[Tensor, ...], state: Tensor) -> tuple[Tensor, Tensor]:
    """One token: q, k (B, H, 1, D), v (B, H, 1, Dv), decay and strength (B, H, 1, 1)."""
    q, k, v, decay, strength = tensors
    state = state * (-decay).exp()
    state = state + k.transpose(-1, -2) @ (strength * (v - k @ state))
    return q @ state, state


def _chunk(
    tensors: tuple[Tensor, ...], state: Tensor, documents: Tensor | None, before: Tensor | None
) -> tuple[Tensor, Tensor]:
    """C tokens, equal to C calls of `_step`; documents: (B, C), before: (B, 1), of the state.

    What token i writes, w_i = strength_i (v_i - k_i S_i), depends on what earlier tokens of the
    chunk wrote: (1 + A) w = strength (v - decayed k S), with A strictly lower triangular.
    """
    q, k, v, decay, strength = tensors
    total = -decay.cumsum(2)  # (B, H, C, 1), log of the decay of the old state
    seen = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).tril()
    from_state = to_state = torch.ones(1, 1, 1, 1, device=q.device)
    if documents is not None and before is not None:
        seen = seen & (documents[:, :, None] == documents[:, None])[:, None]
        from_state = (documents == before)[:, None, :, None].to(q.dtype)
        to_state = (documents == documents[:, -1:])[:, None, :, None].to(q.dtype)
    # Masked before exp, where the difference is positive and may overflow.
    fade = (total - total.transpose(-1, -2)).masked_fill(~seen, float("-inf")).exp()
    below = (strength * k) @ k.transpose(-1, -2) * fade
    from_state = total.exp() * from_state
    wanted = strength * (v - from_state * (k @ state))
    written = torch.linalg.solve_triangular(below, wanted, upper=False, unitriangular=True)
    out = from_state * (q @ state) + (q @ k.transpose(-1, -2) * fade) @ written
    last = total[:, :, -1:]
    keys = k * (last - total).exp() * to_state
    state = state * from_state[:, :, -1:] + keys.transpose(-1, -2) @ written
    return out, state
