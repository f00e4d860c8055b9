"""Diffusion of concepts: noise schedule, guidance and sampler, as functions of tensors.

    x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise,        a_1 .. a_T from about 1 to exactly 0

The model predicts x_0 (arXiv 2412.08821); the sampler is DDIM (arXiv 2010.02502).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from culm.config import Config


class Diffusion(Config):
    """steps: of noise in training. guidance_dropout: share of rows that are denoised without their
    context, so that guidance has something to compare with (arXiv 2207.12598).
    self_conditioning: the model also reads its own estimate of x_0 from the step before; in
        training for half of the batches (arXiv 2208.04202).
    """

    steps: PositiveInt = 100
    guidance_dropout: float = Field(0.15, ge=0, lt=1)
    self_conditioning: bool = True


class Sampler(Config):
    """How the next concept is sampled.

    steps: of denoising. guidance: weight of the context; 1: as trained, without guidance.
    rescale: share in which the guided noise gets the deviation of the unguided (arXiv 2305.08891).
    noise: scale of the noise at the start. temperature: of codes, in a quantised model.
    """

    steps: PositiveInt = 40
    guidance: NonNegativeFloat = 3.0
    rescale: float = Field(0.7, ge=0, le=1)
    noise: PositiveFloat = 0.6
    temperature: NonNegativeFloat = 1.0


# x_t, the last estimate of x_0, t, and whether the context is read -> x_0.
Predict = Callable[[Tensor, Tensor, Tensor | int, bool], Tensor]


def cosine_alphas(steps: int) -> Tensor:
    """(T,) fp64: a_t of the cosine schedule (arXiv 2102.09672) for t = 1 .. T, shifted and scaled
    so that the last one is 0 and the first one stays (zero terminal SNR, arXiv 2305.08891).
    """
    times = torch.arange(steps + 1, dtype=torch.float64) / steps
    curve = torch.cos((times + 0.008) / 1.008 * math.pi / 2) ** 2
    betas = (1 - curve[1:] / curve[:-1]).clamp_max(0.999)
    roots = (1 - betas).cumprod(0).sqrt()
    if steps == 1:
        return torch.zeros(1, dtype=torch.float64)
    return ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2


def noisy(concepts: Tensor, noise: Tensor, alphas: Tensor) -> Tensor:
    """x_t from x_0 and noise (..., C); alphas: (...), a_t of each."""
    kept = alphas[..., None]
    return kept.sqrt() * concepts + (1 - kept).sqrt() * noise


def noise_of(state: Tensor, concepts: Tensor, alpha: float) -> Tensor:
    """The noise in x_t, by an estimate of x_0."""
    return (state - alpha**0.5 * concepts) / (1 - alpha) ** 0.5


def concepts_of(state: Tensor, noise: Tensor, alpha: float) -> Tensor:
    """x_0, by an estimate of the noise in x_t; alpha > 0."""
    return (state - (1 - alpha) ** 0.5 * noise) / alpha**0.5


def guided(
    state: Tensor, with_context: Tensor, without: Tensor, alpha: float, sampler: Sampler
) -> Tensor:
    """x_0 with guidance (arXiv 2207.12598), from two estimates of it.

    The noise e_u + g (e_c - e_u) is that of x_u + g (x_c - x_u), and the latter exists at a_T = 0
    too. Where a_t > 0, the noise is rescaled.
    """
    joined = without + sampler.guidance * (with_context - without)
    if not sampler.rescale or alpha == 0:
        return joined
    noise, plain = (noise_of(state, one, alpha) for one in (joined, with_context))
    ratio = plain.std(-1, keepdim=True) / noise.std(-1, keepdim=True).clamp_min(1e-8)
    rescaled = noise * (sampler.rescale * ratio + 1 - sampler.rescale)
    return concepts_of(state, rescaled, alpha)


def times(steps: int, count: int) -> list[int]:
    """`count` of the steps 1 .. T, the last one first, at equal distances (trailing spacing)."""
    count = min(count, steps)
    return [round(steps - index * steps / count) for index in range(count)]


def denoise(predict: Predict, noise: Tensor, alphas: Tensor, sampler: Sampler) -> Tensor:
    """x_0 (..., C) from normal noise (..., C), by DDIM without further noise."""
    state, estimate = sampler.noise * noise, torch.zeros_like(noise)
    visited = times(len(alphas), sampler.steps)
    for time, following in zip(visited, [*visited[1:], 0], strict=True):
        alpha = float(alphas[time - 1])
        found = predict(state, estimate, time, True)
        if sampler.guidance != 1:
            without = predict(state, estimate, time, False)
            found = guided(state, found, without, alpha, sampler)
        if not following:
            return found
        left = float(alphas[following - 1])
        state = left**0.5 * found + (1 - left) ** 0.5 * noise_of(state, found, alpha)
        estimate = found
    raise AssertionError("there is at least one step")
