"""What the two diffusion networks share: their noise, their loss, and how they sample."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from culm.concept.diffusion import Diffusion, Predict, Sampler, cosine_alphas, denoise, noisy
from culm.concept.network import ConceptNetwork, History, NetworkConfig, successors, summed
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

    def loss(self, concepts: Tensor, present: Tensor) -> Mapping[str, Tensor]:
        settings, (rows, size) = self.config.diffusion, present.shape
        targets, device = concepts[:, 1:], concepts.device
        times = torch.randint(1, settings.steps + 1, (rows, size - 1), device=device)
        alphas = cosine_alphas(settings.steps).to(device, concepts.dtype)[times - 1]
        state = noisy(targets, torch.randn_like(targets), alphas)
        dropped = torch.rand(rows, device=device) < settings.guidance_dropout
        predict = self.predictor(concepts[:, :-1], dropped)
        estimate = torch.zeros_like(state)
        if settings.self_conditioning and float(torch.rand(())) < 0.5:
            with torch.no_grad():
                estimate = predict(state, estimate, times, True)
        distances = (predict(state, estimate, times, True) - targets).square().mean(-1)
        return {"mse": summed(distances, successors(present))}

    def predictions(self, concepts: Tensor, sampler: Sampler, random: Tensor) -> Tensor:
        return self._denoised(self.predictor(concepts), random.to(concepts), sampler)

    def next(self, history: History, sampler: Sampler, random: Tensor) -> Tensor:
        noise = random.to(history.states)[:, None]
        return self._denoised(self.last_predictor(history), noise, sampler)[:, 0]

    def _denoised(self, predict: Predict, noise: Tensor, sampler: Sampler) -> Tensor:
        return denoise(predict, noise, cosine_alphas(self.config.diffusion.steps), sampler)
