"""Noise schedule, guidance and DDIM, by their definitions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from culm.concept import diffusion
from culm.concept.diffusion import Sampler, cosine_alphas, denoise, guided, noise_of, noisy, times

CONCEPTS = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).double()
NOISE = torch.randn(5, 8, generator=torch.Generator().manual_seed(1)).double()


def test_the_last_step_is_noise_alone_and_the_first_hardly_any() -> None:
    alphas = cosine_alphas(100)
    assert alphas[-1] == 0
    assert (alphas.diff() < 0).all()
    # The first one is that of the schedule before it was shifted.
    first = torch.cos(torch.tensor((0.01 + 0.008) / 1.008 * torch.pi / 2).double()) ** 2
    zeroth = torch.cos(torch.tensor(0.008 / 1.008 * torch.pi / 2).double()) ** 2
    assert float(alphas[0]) == pytest.approx(float(first / zeroth), rel=1e-6)
    last = noisy(CONCEPTS, NOISE, alphas[-1].expand(5))
    assert torch.equal(last, NOISE)


@given(st.integers(1, 100), st.integers(1, 120))
@settings(max_examples=20, deadline=None)
def test_steps_are_trailing(steps: int, count: int) -> None:
    visited = times(steps, count)
    assert visited[0] == steps
    assert visited == sorted(set(visited), reverse=True)
    assert len(visited) == min(count, steps)
    assert visited[-1] >= 1


@pytest.mark.parametrize("steps", [1, 2, 7, 40, 100])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_perfect_denoiser_gives_the_concept(steps: int, guidance: float) -> None:
    sampler = Sampler(steps=steps, guidance=guidance)
    found = denoise(lambda *_: CONCEPTS, NOISE, cosine_alphas(100), sampler)
    torch.testing.assert_close(found, CONCEPTS)


def test_ddim_is_deterministic_and_keeps_the_noise() -> None:
    """With a perfect estimate of x_0, each x_t of the way is that concept with that noise."""
    alphas, seen = cosine_alphas(100), []

    def predict(state, estimate, time, given):
        seen.append((state, time))
        return CONCEPTS

    denoise(predict, NOISE, alphas, Sampler(steps=10, guidance=1.0, noise=1.0))
    for state, time in seen:
        torch.testing.assert_close(state, noisy(CONCEPTS, NOISE, alphas[time - 1].expand(5)))


def test_guidance_of_the_noise_is_guidance_of_the_concept() -> None:
    state, conditional, plain = CONCEPTS, CONCEPTS + NOISE, NOISE
    alpha, sampler = 0.3, Sampler(guidance=2.5, rescale=0.0)
    found = guided(state, conditional, plain, alpha, sampler)
    noises = [noise_of(state, one, alpha) for one in (conditional, plain)]
    joined = noises[1] + 2.5 * (noises[0] - noises[1])
    torch.testing.assert_close(found, diffusion.concepts_of(state, joined, alpha))


def test_rescaled_noise_has_the_deviation_of_the_unguided() -> None:
    state, conditional, plain = CONCEPTS, CONCEPTS + NOISE, NOISE
    found = guided(state, conditional, plain, 0.3, Sampler(guidance=2.5, rescale=1.0))
    noise, wanted = noise_of(state, found, 0.3), noise_of(state, conditional, 0.3)
    torch.testing.assert_close(noise.std(-1), wanted.std(-1))
