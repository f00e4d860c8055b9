"""The norm of gradients, and their limit."""

import pytest
import tiny
import torch
from learning import build
from torch import nn

from culm.objective.next_token import NextToken
from culm.parallel.parallelize import Parallel


def parameters(dtype: torch.dtype) -> list[nn.Parameter]:
    """With gradients of several sizes."""
    chance = torch.Generator().manual_seed(0)
    found = [nn.Parameter(torch.zeros(64, 9, dtype=dtype)) for _ in range(40)]
    for number, parameter in enumerate(found):
        gradient = torch.randn(64, 9, generator=chance) * 10 ** (number % 3 - 2)
        parameter.grad = gradient.to(dtype)
    return found


def exact(given: list[nn.Parameter]) -> float:
    return float(torch.cat([p.grad.double().flatten() for p in given]).norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_is_computed_in_fp32(dtype: torch.dtype) -> None:
    """A norm in bf16 has two or three digits."""
    parallel, given = Parallel(build(NextToken(), tiny.model())), parameters(dtype)
    norm = exact(given)
    assert parallel.clip(given, 1.0) == pytest.approx(norm, rel=1e-6)
    assert exact(given) == pytest.approx(1.0, rel=1e-4 if dtype == torch.float32 else 4e-3)
    assert parallel.clip(given, 2.0) == pytest.approx(exact(given), rel=1e-6)


def test_clipping_is_that_of_torch() -> None:
    ours, theirs = parameters(torch.float32), parameters(torch.float32)
    norm = Parallel(build(NextToken(), tiny.model())).clip(ours, 0.5)
    assert norm == pytest.approx(float(nn.utils.clip_grad_norm_(theirs, 0.5)), rel=1e-6)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)
