"""What the two diffusion networks share: their noise, their loss, and how they sample."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from culm.concept.diffusion import Diffusion, Predict, Sampler, cosine_alphas, denoise, noisy
from culm.concept.network import (
    Chances,
    ConceptNetwork,
    History,
    NetworkConfig,
    successors,
    summed,
)
from culm.model.linear import Linear

WAVES = 64  # sines and cosines of a time


class DiffusionConfig(NetworkConfig):
    """diffusion: how noise is added and guided in training."""

    diffusion: Diffusion = Diffusion()


class TimeEmbedding(nn.Module):
    """times: (...) -> (..., E)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.out = Linear(WAVES, width, bias=True), Linear(width, width, bias=True)

    def forward(self, times: Tensor) -> Tensor:
        rates = torch.arange(WAVES // 2, device=times.device) / (WAVES // 2)
        angles = times[..., None].float() * torch.exp(-math.log(10_000) * rates)
        return self.out(F.silu(self.up(torch.cat((angles.sin(), angles.cos()), -1))))


class DiffusionNetwork(ConceptNetwork):
    """A network that denoises the next concept, given the concepts before it."""

    config: DiffusionConfig

    def __init__(self, config: DiffusionConfig, dim: int) -> None:
        super().__init__(config, dim)
        width, estimates = config.trunk.width, 1 + config.diffusion.self_conditioning
        self.noisy_inward = Linear(estimates * dim, width, bias=True)
        self.time = TimeEmbedding(width)

    @abstractmethod
    def predictor(self, concepts: Tensor, dropped: Tensor | None = None) -> Predict:
        """For the next concept after each of (B, S, C). dropped: (B,) bool, rows that are denoised
        without their context.
        """

    @abstractmethod
    def last_predictor(self, history: History) -> Predict:
        """For the concept after a history, (B, 1, C)."""

    def mixed(self, state: Tensor, estimate: Tensor, times: Tensor | int) -> tuple[Tensor, Tensor]:
        """What a denoiser reads: x_t with the last estimate of x_0; and t. (B, N, E) each."""
        given = (state, estimate) if self.config.diffusion.self_conditioning else (state,)
        when = torch.as_tensor(times, device=state.device).expand(state.shape[:-1])
        return self.noisy_inward(torch.cat(given, -1)), self.time(when)

    def loss(self, concepts: Tensor, present: Tensor, chances: Chances) -> Mapping[str, Tensor]:
        settings, targets = self.config.diffusion, concepts[:, 1:]
        noise, times, dropped = self._noise(chances, targets)
        alphas = cosine_alphas(settings.steps).to(targets)[times - 1]
        state = noisy(targets, noise, alphas)
        predict = self.predictor(concepts[:, :-1], dropped)
        estimate = torch.zeros_like(state)
        if settings.self_conditioning and chances.estimated:
            with torch.no_grad():
                estimate = predict(state, estimate, times, True)
        distances = (predict(state, estimate, times, True) - targets).square().mean(-1)
        return {"mse": summed(distances, successors(present))}

    def _noise(self, chances: Chances, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Noise (B, N, C), times (B, N) from 1, and (B,) bool, rows without their context."""
        settings, (_, size, dim) = self.config.diffusion, targets.shape
        rows = [
            (
                torch.randn(size, dim, generator=random),
                torch.randint(1, settings.steps + 1, (size,), generator=random),
                torch.rand((), generator=random) < settings.guidance_dropout,
            )
            for random in chances.generators()
        ]
        noise, times, dropped = (torch.stack(parts) for parts in zip(*rows, strict=True))
        device = targets.device
        return noise.to(targets), times.to(device), dropped.to(device)

    def predictions(self, concepts: Tensor, sampler: Sampler, random: Tensor) -> Tensor:
        return self._denoised(self.predictor(concepts), random.to(concepts), sampler)

    def next(self, history: History, sampler: Sampler, random: Tensor) -> Tensor:
        noise = random.to(history.states)[:, None]
        return self._denoised(self.last_predictor(history), noise, sampler)[:, 0]

    def _denoised(self, predict: Predict, noise: Tensor, sampler: Sampler) -> Tensor:
        return denoise(predict, noise, cosine_alphas(self.config.diffusion.steps), sampler)
