"""Two-tower diffusion LCM (arXiv 2412.08821): a contextualizer, and a denoiser that reads it.

concepts  s_0 .. s_{n-1}  -- trunk -->  contexts [0, c_0 .. c_{n-1}]
                                                 |  cross-attention
x_t of s_n, t             -- denoiser ---------- + ---> s_n
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from culm.concept.denoising import DiffusionConfig, DiffusionNetwork
from culm.concept.diffusion import Predict
from culm.concept.network import History
from culm.model.context import Context, LayerContext
from culm.model.init import CustomInit
from culm.model.linear import Linear
from culm.model.trunk import TrunkConfig


class TwoTower(DiffusionConfig):
    """trunk: the contextualizer. denoiser_layers, denoiser_heads: of the second tower, which has
    the width, the feed-forwards and the norms of the first.
    """

    kind: Literal["two_tower"] = "two_tower"
    denoiser_layers: PositiveInt = 4
    denoiser_heads: PositiveInt = 6

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.trunk.width % self.denoiser_heads:
            raise ValueError(
                f"denoiser_heads: {self.denoiser_heads} does not divide "
                f"trunk.width={self.trunk.width}"
            )
        return self

    def new(self, dim: int) -> TwoTowerNetwork:
        return TwoTowerNetwork(self, dim)


class Modulation(nn.Module, CustomInit):
    """Shift, scale and gate of three branches from the time (AdaLN, arXiv 2212.09748); (..., E) ->
    9 of (..., E), all zero at first.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(9 * width, width))
        self.bias = nn.Parameter(torch.empty(9 * width))

    def init_weights(self, generator: Callable[[str], torch.Generator], std: float) -> None:
        self.weight.zero_()
        self.bias.zero_()

    def forward(self, time: Tensor) -> tuple[Tensor, ...]:
        weight, bias = (part.to(time.dtype) for part in (self.weight, self.bias))
        return F.linear(F.silu(time), weight, bias).chunk(9, -1)


class DenoiserBlock(nn.Module):
    """Self-attention, cross-attention to the contexts, feed-forward; each modulated by the time.

    A concept that is denoised attends to itself alone. Softmax over one key is 1, so that
    self-attention is its value projection, with the same result and without the rest.
    """

    def __init__(self, config: TrunkConfig, heads: int) -> None:
        super().__init__()
        width, self.heads = config.width, heads
        self.modulation = Modulation(width)
        self.norms = nn.ModuleList(config.norm.build(width) for _ in range(3))
        self.value, self.own = Linear(width, width), Linear(width, width, residual=True)
        self.q, self.k, self.v = (Linear(width, width) for _ in range(3))
        self.out = Linear(width, width, residual=True)
        self.mlp = config.mlps[0].build(width)

    def forward(
        self, x: Tensor, time: Tensor, contexts: Tensor, seen: Tensor, context: LayerContext
    ) -> Tensor:
        """x, time: (B, N, E); contexts: (B, M, E); seen: (B, N, M) bool -> (B, N, E)."""
        parts = self.modulation(time)
        x = x + parts[2] * self.own(self.value(self._read(x, 0, parts)))
        x = x + parts[5] * self._attend(self._read(x, 1, parts), contexts, seen)
        return x + parts[8] * self.mlp(self._read(x, 2, parts), context)

    def _read(self, x: Tensor, branch: int, parts: tuple[Tensor, ...]) -> Tensor:
        shift, scale = parts[3 * branch], parts[3 * branch + 1]
        return self.norms[branch](x) * (1 + scale) + shift

    def _attend(self, x: Tensor, contexts: Tensor, seen: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.q(x), self.k(contexts), self.v(contexts))
        )
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None])
        return self.out(heads.transpose(1, 2).flatten(-2))


class TwoTowerNetwork(DiffusionNetwork):
    """concepts: (B, S, C) -> samples of the next concept after each."""

    config: TwoTower

    def __init__(self, config: TwoTower, dim: int) -> None:
        super().__init__(config, dim)
        trunk = config.trunk
        self.denoiser = nn.ModuleList(
            DenoiserBlock(trunk, config.denoiser_heads) for _ in range(config.denoiser_layers)
        )
        self.denoiser_norm = trunk.norm.build(trunk.width)

    def predictor(self, concepts: Tensor, dropped: Tensor | None = None) -> Predict:
        states = self.trunk(self.inward(concepts))
        contexts = F.pad(states, (0, 0, 1, 0))  # the zero vector comes first
        size = states.shape[1]
        seen = torch.ones(size, size + 1, dtype=torch.bool, device=states.device).tril(1)
        return self._reader(contexts, seen.expand(len(states), -1, -1), dropped)

    def last_predictor(self, history: History) -> Predict:
        contexts = F.pad(history.states, (0, 0, 1, 0))
        shape = (len(contexts), 1, contexts.shape[1])
        seen = torch.ones(shape, dtype=torch.bool, device=contexts.device)
        return self._reader(contexts, seen)

    def _reader(self, contexts: Tensor, seen: Tensor, dropped: Tensor | None = None) -> Predict:
        """contexts: (B, M, E), of which target n sees those in seen (B, N, M). dropped: (B,) bool,
        rows without context.
        """
        alone = torch.zeros_like(seen)
        alone[..., 0] = True
        if dropped is not None:
            seen = torch.where(dropped[:, None, None], alone, seen)

        def predict(state: Tensor, estimate: Tensor, times: Tensor | int, given: bool) -> Tensor:
            x, time = self.mixed(state, estimate, times)
            context = LayerContext.of(Context.plain(x))
            for block in self.denoiser:
                x = block(x, time, contexts, seen if given else alone, context)
            return self.outward(self.denoiser_norm(x))

        return predict
