"""Quantised LCM (arXiv 2412.08821): the next concept as discrete codes, coarse to fine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from culm.concept.codes import Codebooks
from culm.concept.diffusion import Sampler
from culm.concept.network import (
    Chances,
    ConceptNetwork,
    History,
    NetworkConfig,
    successors,
    summed,
)
from culm.model.linear import Linear


class Quantized(NetworkConfig):
    """codebooks: of residual vector quantisation. codes: of each. (The paper has 64 of 8,192.)"""

    kind: Literal["quantized"] = "quantized"
    codebooks: PositiveInt = 4
    codes: int = Field(64, ge=2)

    def new(self, dim: int) -> QuantizedNetwork:
        return QuantizedNetwork(self, dim)


class QuantizedNetwork(ConceptNetwork):
    """p(codes of the next concept) is a product over levels: each level reads the state of the
    trunk and the sum of the entries that were chosen before it.
    """

    config: Quantized

    def __init__(self, config: Quantized, dim: int) -> None:
        super().__init__(config, dim)
        width = config.trunk.width
        self.outward = nn.Identity()  # a concept is the sum of its entries
        self.codebooks = Codebooks(config.codebooks, config.codes, dim)
        self.chosen = Linear(dim, width, bias=True)
        self.levels = nn.Embedding(config.codebooks, width)
        self.hidden = Linear(width, width, bias=True)
        self.heads = nn.ModuleList(
            Linear(width, config.codes, bias=True) for _ in range(config.codebooks)
        )

    def calibrate(self, concepts: Tensor, seed: int) -> None:
        self.codebooks.fit(concepts, seed)

    def logits(self, states: Tensor, chosen: Tensor, level: int) -> Tensor:
        """(..., N) for a level. states: (..., E). chosen: (..., C), the sum of earlier entries."""
        x = states + self.chosen(chosen) + self.levels.weight[level]
        return self.heads[level](x + F.silu(self.hidden(x)))

    def loss(self, concepts: Tensor, present: Tensor, chances: Chances) -> Mapping[str, Tensor]:
        """The negative log-likelihood of all codes of a concept, in nats."""
        states = self.trunk(self.inward(concepts[:, :-1]))
        codes = self.codebooks(concepts[:, 1:])
        parts = self.codebooks.parts(codes)
        before = parts.cumsum(-2) - parts
        nats = torch.zeros_like(codes[..., 0], dtype=states.dtype)
        for level in range(self.config.codebooks):
            logits = self.logits(states, before[..., level, :], level)
            nats = nats + F.cross_entropy(
                logits.flatten(0, -2), codes[..., level].flatten(), reduction="none"
            ).view_as(nats)
        return {"nll": summed(nats, successors(present))}

    def random(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """(*shape, K, N), uniform."""
        return torch.rand(*shape, self.config.codebooks, self.config.codes, generator=generator)

    def predictions(self, concepts: Tensor, sampler: Sampler, random: Tensor) -> Tensor:
        return self._sampled(self.trunk(self.inward(concepts)), sampler, random)

    def next(self, history: History, sampler: Sampler, random: Tensor) -> Tensor:
        return self._sampled(history.states[:, -1], sampler, random)

    def _sampled(self, states: Tensor, sampler: Sampler, random: Tensor) -> Tensor:
        """(..., C) from states (..., E): the largest logit, with Gumbel noise of a temperature."""
        noise = -(-random.to(states).clamp(1e-20, 1 - 1e-7).log()).log()
        chosen = torch.zeros(*states.shape[:-1], self.dim, device=states.device)
        for level in range(self.config.codebooks):
            logits = self.logits(states, chosen, level)
            code = (logits + sampler.temperature * noise[..., level, :]).argmax(-1)
            chosen = chosen + self.codebooks.entries[level][code]
        return chosen
