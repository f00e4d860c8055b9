"""Maps and distances: golden numbers, geoopt, inverses, isometries, edges and limits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from culm.hyperbolic.lorentz import Lorentz, from_ball, lift, lorentz_inner, to_ball
from culm.hyperbolic.manifold import Euclidean, Manifold
from culm.hyperbolic.means import frechet_mean, lorentz_centroid
from culm.hyperbolic.poincare import MARGIN, Poincare
from culm.hyperbolic.ratios import arsinh_ratio, artanh_ratio, sinh_ratio, tanh_ratio

CURVATURES = (0.3, 1.0, 2.5)


def points(
    count: int = 6, seed: int = 0, curvature: float = 1.0, reach: float = 0.9
) -> torch.Tensor:
    """(count, 4) in the ball, up to `reach` of its radius."""
    chance = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 4, generator=chance, dtype=torch.float64)
    radius = torch.rand(6, 1, generator=chance, dtype=torch.float64) * reach
    return x / x.norm(dim=-1, keepdim=True) * radius / math.sqrt(curvature)


def cases() -> list:
    made = [(Euclidean(), points(), points(seed=1))]
    for c in CURVATURES:
        x, y = points(curvature=c), points(seed=1, curvature=c)
        made += [(Poincare(c), x, y), (Lorentz(c), from_ball(x, c), from_ball(y, c))]
    return made


def test_golden_numbers() -> None:
    u, v = torch.tensor([[0.3, 0.4], [-0.5, 0.2]], dtype=torch.float64)
    assert float(Poincare().distance(u, v)) == pytest.approx(1.94081055, abs=1e-8)
    x, y = from_ball(u), from_ball(v)
    assert x.tolist() == pytest.approx([1.66666667, 0.8, 1.06666667], abs=1e-8)
    assert y.tolist() == pytest.approx([1.81690141, -1.40845070, 0.56338028], abs=1e-8)
    assert float(Lorentz().distance(x, y)) == pytest.approx(1.94081055, abs=1e-8)


@pytest.mark.parametrize("curvature", CURVATURES)
def test_ball_matches_geoopt(curvature: float) -> None:
    geoopt = pytest.importorskip("geoopt")
    theirs = geoopt.PoincareBall(c=torch.tensor(curvature, dtype=torch.float64))
    ours, x, y = (
        Poincare(curvature),
        points(curvature=curvature),
        points(seed=1, curvature=curvature),
    )
    v = points(seed=2)
    expected = {
        "distance": (ours.distance(x, y), theirs.dist(x, y)),
        "exp": (ours.exp(x, v), theirs.expmap(x, v)),
        "log": (ours.log(x, y), theirs.logmap(x, y)),
        "transport": (ours.transport(x, y, v), theirs.transp(x, y, v)),
        "gradient": (ours.gradient(x, v), theirs.egrad2rgrad(x, v)),
        "add": (ours.add(x, y), theirs.mobius_add(x, y)),
        "from_origin": (ours.from_origin(v), theirs.expmap0(v)),
        "inner": (ours.inner(x, v, v), theirs.inner(x, v, keepdim=True)),
    }
    for name, (own, other) in expected.items():
        torch.testing.assert_close(own, other, atol=1e-6, rtol=1e-6, msg=name)


@pytest.mark.parametrize("curvature", CURVATURES)
def test_hyperboloid_matches_geoopt(curvature: float) -> None:
    geoopt = pytest.importorskip("geoopt")
    theirs = geoopt.Lorentz(k=torch.tensor(1 / curvature, dtype=torch.float64))
    ours = Lorentz(curvature)
    x, y = (from_ball(points(seed=s, curvature=curvature), curvature) for s in (0, 1))
    v = ours.tangent(x, torch.nn.functional.pad(points(seed=2), (1, 0)))
    expected = {
        "distance": (ours.distance(x, y), theirs.dist(x, y)),
        "exp": (ours.exp(x, v), theirs.expmap(x, v)),
        "log": (ours.log(x, y), theirs.logmap(x, y)),
        "transport": (ours.transport(x, y, v), theirs.transp(x, y, v)),
        "inner": (ours.inner(x, v, v)[:, 0], theirs.inner(x, v, keepdim=False)),
    }
    for name, (own, other) in expected.items():
        torch.testing.assert_close(own, other, atol=1e-6, rtol=1e-6, msg=name)


@pytest.mark.parametrize(("manifold", "x", "y"), cases())
def test_log_is_the_inverse_of_exp(manifold: Manifold, x: torch.Tensor, y: torch.Tensor) -> None:
    v = manifold.log(x, y)
    torch.testing.assert_close(manifold.exp(x, v), y, atol=1e-8, rtol=1e-8)
    length = manifold.inner(x, v, v)[:, 0].sqrt()
    torch.testing.assert_close(length, manifold.distance(x, y), atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize(("manifold", "x", "y"), cases())
def test_transport_keeps_angles_and_lengths(
    manifold: Manifold, x: torch.Tensor, y: torch.Tensor
) -> None:
    v, w = manifold.log(x, y), manifold.log(x, y.roll(1, 0))
    moved = [manifold.transport(x, y, u) for u in (v, w)]
    before, after = manifold.inner(x, v, w), manifold.inner(y, *moved)
    torch.testing.assert_close(before, after, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(moved[0], -manifold.log(y, x), atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize(("manifold", "x", "y"), cases())
def test_gradient_is_that_of_finite_differences(
    manifold: Manifold, x: torch.Tensor, y: torch.Tensor
) -> None:
    """Along every geodesic the distance changes by the inner product with its gradient."""
    at = x.clone().requires_grad_()
    manifold.distance(at, y).sum().backward()
    gradient = manifold.gradient(x, at.grad)
    v, h = manifold.log(x, y.roll(1, 0)), 1e-5
    ahead, behind = (manifold.distance(manifold.exp(x, s * h * v), y) for s in (1, -1))
    torch.testing.assert_close(
        manifold.inner(x, gradient, v)[:, 0], (ahead - behind) / (2 * h), atol=1e-7, rtol=1e-6
    )


@pytest.mark.parametrize("curvature", CURVATURES)
def test_both_models_are_the_same_space(curvature: float) -> None:
    x, y = points(curvature=curvature, reach=0.999), points(seed=1, curvature=curvature)
    a, b = from_ball(x, curvature), from_ball(y, curvature)
    torch.testing.assert_close(to_ball(a, curvature), x, atol=1e-12, rtol=1e-12)
    own = lorentz_inner(a, a)
    torch.testing.assert_close(own, torch.full_like(own, -1 / curvature), atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(
        Lorentz(curvature).distance(a, b), Poincare(curvature).distance(x, y), atol=1e-8, rtol=1e-8
    )
    moved = Poincare(curvature).from_origin(y)
    torch.testing.assert_close(
        from_ball(moved, curvature), Lorentz(curvature).from_origin(2 * y), atol=1e-8, rtol=1e-8
    )


@pytest.mark.parametrize("curvature", [0.0, 1e-14, 1e-7])
def test_curvature_to_zero_is_the_euclidean_limit(curvature: float) -> None:
    """The metric of the ball is 4 times the Euclidean one there."""
    flat, ball, x, y, v = Euclidean(), Poincare(curvature), points(), points(seed=1), points(seed=2)
    close = {"atol": 10 * curvature + 1e-12, "rtol": 10 * curvature + 1e-12}
    torch.testing.assert_close(ball.distance(x, y), 2 * flat.distance(x, y), **close)
    torch.testing.assert_close(ball.exp(x, v), flat.exp(x, v), **close)
    torch.testing.assert_close(ball.log(x, y), flat.log(x, y), **close)
    torch.testing.assert_close(ball.transport(x, y, v), v, **close)
    torch.testing.assert_close(ball.gradient(x, v), v / 4, **close)
    if curvature:
        a, b = lift(x, curvature), lift(y, curvature)
        torch.testing.assert_close(
            Lorentz(curvature).distance(a, b), flat.distance(x, y), atol=1e-6, rtol=1e-6
        )


def test_gradients_of_the_curvature_are_finite_at_zero() -> None:
    c = torch.zeros((), dtype=torch.float64, requires_grad=True)
    Poincare(c).distance(points(), points(seed=1)).sum().backward()
    assert c.grad is not None
    assert c.grad.isfinite()
    assert c.grad != 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_edge_of_the_ball(dtype: torch.dtype) -> None:
    """Points on the edge and outside come back inside, and all maps stay finite there."""
    ball = Poincare(2.0)
    outside = torch.tensor([[1.0, 0.0], [0.0, 50.0], [0.5, 0.5]], dtype=dtype).requires_grad_()
    inside = ball.project(outside)
    assert float(inside.detach().norm(dim=-1).max()) <= (1 - MARGIN[dtype]) / math.sqrt(2) * (
        1 + 1e-6
    )
    opposite = -inside
    distance = ball.distance(inside, opposite)
    distance.sum().backward()
    found = [distance, outside.grad, ball.log(inside, opposite), ball.exp(inside, 100 * inside)]
    assert all(one.isfinite().all() for one in found)
    assert float(ball.exp(inside, 100 * inside).detach().norm(dim=-1).max()) < 1 / math.sqrt(2)


@pytest.mark.parametrize(("manifold", "x", "y"), cases())
def test_equal_points(manifold: Manifold, x: torch.Tensor, y: torch.Tensor) -> None:
    at = x.clone().requires_grad_()
    distance = manifold.distance(at, x)
    distance.sum().backward()
    assert float(distance.detach().max()) < 1e-7
    assert at.grad.isfinite().all()
    assert manifold.log(x, x).abs().max() < 1e-7


def test_near_points_keep_their_digits() -> None:
    """Where the arcosh of the paper has none left: 1 + 2e-24 is 1."""
    x = torch.tensor([0.5, 0.0], dtype=torch.float64)
    y = x + torch.tensor([0.0, 1e-12], dtype=torch.float64)
    assert float(Poincare().distance(x, y)) == pytest.approx(1e-12 * 2 / 0.75, rel=1e-9)


@given(st.floats(1e-12, 3.0))
@settings(max_examples=30, deadline=None)
def test_ratios_are_their_functions(r: float) -> None:
    z = torch.tensor(r * r, dtype=torch.float64)
    for ratio, function in (
        (sinh_ratio, math.sinh), (tanh_ratio, math.tanh), (arsinh_ratio, math.asinh)
    ):  # fmt: skip
        assert float(ratio(z)) == pytest.approx(function(r) / r, rel=1e-9)
    if r < 0.999:
        assert float(artanh_ratio(z)) == pytest.approx(math.atanh(r) / r, rel=1e-9)


@pytest.mark.parametrize(("manifold", "x", "y"), cases())
def test_frechet_mean(manifold: Manifold, x: torch.Tensor, y: torch.Tensor) -> None:
    """Its weighted tangents add up to zero; of two points it is the middle of their geodesic."""
    weights = torch.arange(1.0, 7.0, dtype=torch.float64)
    mean = frechet_mean(manifold, x, weights)
    pull = (weights[:, None] * manifold.log(mean, x)).sum(0)
    assert pull.abs().max() < 1e-9
    middle = manifold.exp(x[0], manifold.log(x[0], y[0]) / 2)
    torch.testing.assert_close(
        frechet_mean(manifold, torch.stack((x[0], y[0]))), middle, atol=1e-9, rtol=1e-9
    )


def test_frechet_mean_says_when_it_does_not_converge() -> None:
    with pytest.raises(ValueError, match=r"tolerance: 0\.0 was not reached"):
        frechet_mean(Poincare(), points().float(), tolerance=0.0)


def test_lorentz_centroid() -> None:
    """No nearby point has a smaller sum of squared Lorentzian distances."""
    x, weights = from_ball(points(), 1.0), torch.arange(1.0, 7.0, dtype=torch.float64)
    centre, space = lorentz_centroid(x, weights), Lorentz()
    assert float(lorentz_inner(centre, centre)) == pytest.approx(-1, abs=1e-12)

    def cost(at: torch.Tensor) -> float:
        return float((weights[:, None] * lorentz_inner(x - at, x - at)).sum())

    for direction in space.log(centre, x):
        assert cost(space.exp(centre, 1e-3 * direction)) > cost(centre)
