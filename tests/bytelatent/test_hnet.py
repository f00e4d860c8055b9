import pytest
import torch

from culm.bytelatent.hnet import ratio_loss, smoothed


def rows(share: float, count: int = 100) -> torch.Tensor:
    return (torch.arange(count) < round(share * count))[None]


@pytest.mark.parametrize(("f", "g", "expected"), [(0.3, 0.28, 1.008), (0.25, 0.25, 1.0)])
def test_ratio_loss_has_its_golden_values(f, g, expected):
    at, p = rows(f), torch.full((1, 100), g)
    torch.testing.assert_close(ratio_loss(at, p, 4.0) / 100, torch.tensor(expected))


def test_ratio_loss_of_rows_is_a_sum_over_bytes_without_padding():
    at, p = torch.cat((rows(0.3), rows(0.1))), torch.full((2, 100), 0.2)
    apart_ = ratio_loss(at[:1], p[:1], 4.0) + ratio_loss(at[1:], p[1:], 4.0)
    torch.testing.assert_close(ratio_loss(at, p, 4.0), apart_)
    real = torch.ones(1, 120, dtype=torch.bool)
    real[:, 100:] = False
    padded = torch.nn.functional.pad(at[:1], (0, 20), value=True)
    found = ratio_loss(padded, torch.nn.functional.pad(p[:1], (0, 20), value=1.0), 4.0, real)
    torch.testing.assert_close(found, ratio_loss(at[:1], p[:1], 4.0))


def test_smoothing_equals_the_recurrence_within_documents():
    chance = torch.Generator().manual_seed(0)
    values = torch.randn(1, 9, 3, generator=chance)
    p = torch.rand(1, 9, generator=chance) * 0.8 + 0.1
    positions = torch.tensor([[5, 6, 7, 0, 1, 2, 3, 0, 1]])
    earlier = torch.randn(1, 3, generator=chance)
    z, expected = earlier[0], []
    for g, one, position in zip(values[0], p[0], positions[0], strict=True):
        z = g if position == 0 else one * g + (1 - one) * z
        expected.append(z)
    found = smoothed(values, p, positions, earlier)
    torch.testing.assert_close(found[0], torch.stack(expected))
    fresh = smoothed(values[:, 3:], p[:, 3:], positions[:, 3:])
    torch.testing.assert_close(fresh, found[:, 3:])


def test_a_long_row_is_as_exact_as_a_short_one():
    """The last patches, read with all before them, are those read after the one before them."""
    chance = torch.Generator().manual_seed(0)
    values = torch.randn(1, 3000, 2, generator=chance)
    p = torch.rand(1, 3000, generator=chance)
    positions = torch.arange(3000)[None]
    whole = smoothed(values, p, positions)
    last = smoothed(values[:, 2980:], p[:, 2980:], positions[:, 2980:], whole[:, 2979])
    torch.testing.assert_close(whole[:, 2980:], last, atol=2e-6, rtol=2e-6)


def test_gradients_reach_the_router_through_the_smoothing():
    p = torch.full((1, 4), 0.7, requires_grad=True)
    smoothed(torch.randn(1, 4, 2), p, torch.arange(4)[None]).square().sum().backward()
    assert p.grad is not None
    assert (p.grad[0, 1:] != 0).all()
