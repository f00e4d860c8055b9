"""Riemannian rules: geoopt's steps, the Euclidean twin, and staying on the manifold."""

import pytest
import torch
from torch import nn

from culm.hyperbolic.lorentz import Lorentz, from_ball, lorentz_inner
from culm.hyperbolic.manifold import Euclidean, Manifold, OnManifold
from culm.hyperbolic.poincare import Poincare
from culm.optim.riemannian import RiemannianAdam, RiemannianSGD


class Points(nn.Module, OnManifold):
    """Points of one manifold, pulled to fixed ones, and a bias that is not on it."""

    def __init__(self, manifold: Manifold, lorentz: bool = False) -> None:
        super().__init__()
        chance = torch.Generator().manual_seed(0)
        start, target = torch.rand(2, 7, 3, generator=chance, dtype=torch.float64) - 0.5
        self.manifold, self.target = manifold, from_ball(target) if lorentz else target
        self.points = nn.Parameter(from_ball(start) if lorentz else start)
        self.bias = nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def manifolds(self) -> dict[str, Manifold]:
        return {"points": self.manifold}

    def loss(self) -> torch.Tensor:
        pulls = self.manifold.distance(self.points, self.target).square().sum()
        return pulls + (self.bias - 1).square().sum()


def trained(points: Points, optimizer: torch.optim.Optimizer, steps: int = 5) -> Points:
    for _ in range(steps):
        optimizer.zero_grad()
        points.loss().backward()
        optimizer.step()
    return points


def of_geoopt(points: Points, adam: bool, space: str) -> Points:
    geoopt = pytest.importorskip("geoopt")
    one = torch.tensor(1.0, dtype=torch.float64)
    if space == "euclidean":
        manifold = geoopt.Euclidean(ndim=1)
    else:  # of the two balls of geoopt, the exact one moves along geodesics
        manifold = geoopt.Lorentz(k=one) if space == "lorentz" else geoopt.PoincareBallExact(c=one)
    points.points = geoopt.ManifoldParameter(points.points.detach().clone(), manifold=manifold)
    if adam:
        optimizer = geoopt.optim.RiemannianAdam([points.points], lr=0.05)
    else:
        optimizer = geoopt.optim.RiemannianSGD([points.points], lr=0.05)
    return trained(points, optimizer)


SPACES = {"poincare": Poincare(), "lorentz": Lorentz(), "euclidean": Euclidean()}


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("adam", [False, True])
def test_steps_match_geoopt(adam: bool, space: str) -> None:
    manifold, lorentz = SPACES[space], space == "lorentz"
    ours = Points(manifold, lorentz)
    kind = RiemannianAdam if adam else RiemannianSGD
    trained(ours, kind(rate=0.05).build(ours))
    theirs = of_geoopt(Points(manifold, lorentz), adam, space)
    torch.testing.assert_close(
        ours.points.detach(), theirs.points.detach().as_subclass(torch.Tensor), atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize("adam", [False, True])
def test_euclidean_twin_is_that_of_torch(adam: bool) -> None:
    """Coordinate by coordinate: their gradients differ in size."""
    ours, theirs = Points(Euclidean()), Points(Euclidean())
    kinds = (RiemannianAdam, torch.optim.Adam) if adam else (RiemannianSGD, torch.optim.SGD)
    trained(ours, kinds[0](rate=0.05).build(ours))
    trained(theirs, kinds[1](theirs.parameters(), lr=0.05))
    torch.testing.assert_close(ours.points, theirs.points)
    torch.testing.assert_close(ours.bias, theirs.bias)


def test_parameters_without_points_take_steps_of_adamw() -> None:
    ours, theirs = Points(Poincare()), Points(Poincare())
    trained(ours, RiemannianAdam(rate=0.05).build(ours))
    trained(theirs, torch.optim.Adam(theirs.parameters(), lr=0.05, betas=(0.9, 0.999)))
    torch.testing.assert_close(ours.bias, theirs.bias)


@pytest.mark.parametrize("kind", [RiemannianSGD, RiemannianAdam])
@pytest.mark.parametrize("rate", [0.1, 30.0, 1e3])
def test_points_stay_on_the_manifold(rate: float, kind: type[RiemannianSGD]) -> None:
    """Also with a rate that throws them far out, where their distances are still numbers."""
    ball, sheet = Points(Poincare()), Points(Lorentz(), lorentz=True)
    for points in (ball, sheet):
        trained(points, kind(rate=rate).build(points), steps=4)
        assert points.points.isfinite().all()
        assert points.loss().isfinite()
    assert float(ball.points.detach().norm(dim=-1).max()) < 1
    own = lorentz_inner(sheet.points, sheet.points) / sheet.points[:, :1].square()
    assert float((own + 1 / sheet.points[:, :1].square()).detach().abs().max()) < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [30.0, 300.0, 1e6])
def test_steps_that_no_number_could_express_end_far_out(length: float, dtype) -> None:
    space = Lorentz(0.5)
    direction = torch.tensor([[0.6, 0.0, 0.8]], dtype=dtype)
    x = space.from_origin(direction * length)
    origin = space.origin(x)
    further = space.exp(x, space.log(x, origin) * -length)
    for point in (x, further):
        assert point.isfinite().all()
        assert space.distance(point, origin).isfinite().all()
        torch.testing.assert_close(point[:, 1:] / point[:, 1:].norm(), direction)
    far = {torch.float32: 13.0, torch.float64: 30.0}[dtype]  # sqrt(2) log(2 FARTHEST) is the most
    assert far < float(space.distance(x, origin)) < 34


def test_groups_are_named_and_learn_at_the_rate() -> None:
    groups = RiemannianAdam(rate=0.05, weight_decay=0.1).build(Points(Poincare())).param_groups
    assert [(group["name"], group["lr"], group["weight_decay"]) for group in groups] == [
        ("points", 0.05, 0.0), ("objective", 0.05, 0.0)
    ]  # fmt: skip
