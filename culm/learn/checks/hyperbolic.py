"""Exercises of lesson 10b: hyperbolic space, in the ball and on the hyperboloid."""

from __future__ import annotations

import torch
from torch import Tensor

from culm.hyperbolic import lorentz
from culm.hyperbolic.means import lorentz_centroid
from culm.hyperbolic.poincare import Poincare
from culm.learn.exercise import Exercise, Mistake, normal

BALL = Poincare(1.0)


def distance(x: Tensor, y: Tensor) -> Tensor:
    return BALL.distance(x, y)


def distance_answer(x: Tensor, y: Tensor) -> Tensor:
    away = (x - y).square().sum(-1)
    left, right = 1 - x.square().sum(-1), 1 - y.square().sum(-1)
    return torch.acosh(1 + 2 * away / (left * right))


def add(x: Tensor, y: Tensor) -> Tensor:
    return BALL.add(x, y)


def add_answer(x: Tensor, y: Tensor) -> Tensor:
    xy, xx, yy = (x * y).sum(), (x * x).sum(), (y * y).sum()
    return ((1 + 2 * xy + yy) * x + (1 - xx) * y) / (1 + 2 * xy + xx * yy)


def from_origin(v: Tensor) -> Tensor:
    return BALL.from_origin(v)


def from_origin_answer(v: Tensor) -> Tensor:
    length = v.norm(dim=-1, keepdim=True)
    return torch.where(length > 0, torch.tanh(length) * v / length.clamp_min(1e-12), v)


def gradient(x: Tensor, euclidean: Tensor) -> Tensor:
    return BALL.gradient(x, euclidean)


def gradient_answer(x: Tensor, euclidean: Tensor) -> Tensor:
    return euclidean * (1 - x.square().sum(-1, keepdim=True)) ** 2 / 4


def lift(space: Tensor) -> Tensor:
    return lorentz.lift(space, 1.0)


def lift_answer(space: Tensor) -> Tensor:
    return torch.cat(((1 + space.square().sum(-1, keepdim=True)).sqrt(), space), -1)


def inner(x: Tensor, y: Tensor) -> Tensor:
    return lorentz.lorentz_inner(x, y)[..., 0]


def to_ball(x: Tensor) -> Tensor:
    return lorentz.to_ball(x)


def centroid(x: Tensor, weights: Tensor) -> Tensor:
    return lorentz_centroid(x, weights)


def centroid_answer(x: Tensor, weights: Tensor) -> Tensor:
    mean = (weights[:, None] * x).sum(0)
    return mean / (mean[0] ** 2 - (mean[1:] ** 2).sum()).sqrt()


def _ball(g: torch.Generator, *shape: int) -> Tensor:
    points = normal(g, *shape).double()
    return 0.8 * points / (1 + points.norm(dim=-1, keepdim=True))


def _points(g: torch.Generator, *shape: int) -> Tensor:
    return lift_answer(normal(g, *shape).double())


EXERCISES = (
    Exercise(
        "hyperbolic.distance",
        "Give arcosh(1 + 2 |x - y|^2 / ((1 - |x|^2) (1 - |y|^2))).",
        distance,
        lambda g: [(_ball(g, 4, 2), _ball(g, 4, 2)), (_ball(g, 3), torch.zeros(3).double())],
        distance_answer,
        (
            Mistake("this is the distance of a flat space.", lambda x, y: (x - y).norm(dim=-1)),
            Mistake("both factors are in the divisor.",
                    lambda x, y: torch.acosh(1 + 2 * (x - y).square().sum(-1)
                                             / (1 - x.square().sum(-1)))),
        ),
    ),
    Exercise(
        "hyperbolic.add",
        "Write Moebius addition: ((1 + 2xy + yy) x + (1 - xx) y) / (1 + 2xy + xx yy), with dot "
        "products.",
        add,
        lambda g: [(_ball(g, 3), _ball(g, 3)), (torch.zeros(2).double(), _ball(g, 2))],
        add_answer,
        (
            Mistake("a sum may leave the ball.", lambda x, y: x + y),
            Mistake("it is not commutative: x comes first.", lambda x, y: add_answer(y, x)),
        ),
    ),
    Exercise(
        "hyperbolic.from_origin",
        "Keep the direction of a vector, and give it the length tanh of its length; 0 stays 0.",
        from_origin,
        lambda g: [(normal(g, 4, 3).double(),), (torch.zeros(1, 2).double(),)],
        from_origin_answer,
        (
            Mistake("0 / 0 is nan.", lambda v: torch.tanh(v.norm(dim=-1, keepdim=True)) * v
                    / v.norm(dim=-1, keepdim=True)),
            Mistake("the length counts, not each element.", torch.tanh),
        ),
    ),
    Exercise(
        "hyperbolic.gradient",
        "Scale the partial derivatives by (1 - |x|^2)^2 / 4.",
        gradient,
        lambda g: [(_ball(g, 4, 3), normal(g, 4, 3).double())],
        gradient_answer,
        (
            Mistake("near the edge a step is long: scale it.", lambda x, euclidean: euclidean),
            Mistake("square the factor.",
                    lambda x, euclidean: euclidean * (1 - x.square().sum(-1, keepdim=True)) / 2),
        ),
    ),
    Exercise(
        "hyperbolic.lift",
        "Put the time sqrt(1 + |s|^2) before the space part.",
        lift,
        lambda g: [(normal(g, 4, 3).double(),), (torch.zeros(1, 2).double(),)],
        lift_answer,
        (
            Mistake("add 1 under the root.",
                    lambda space: torch.cat((space.norm(dim=-1, keepdim=True), space), -1)),
            Mistake("the time comes first.",
                    lambda space: torch.cat((space, lift_answer(space)[..., :1]), -1)),
        ),
    ),
    Exercise(
        "hyperbolic.inner",
        "Give the dot product of the space parts minus time times time.",
        inner,
        lambda g: [(_points(g, 4, 3), _points(g, 4, 3))],
        lambda x, y: (x[..., 1:] * y[..., 1:]).sum(-1) - x[..., 0] * y[..., 0],
        (
            Mistake("the times count negative.", lambda x, y: (x * y).sum(-1)),
        ),
    ),
    Exercise(
        "hyperbolic.to_ball",
        "Divide the space part by 1 + time.",
        to_ball,
        lambda g: [(_points(g, 4, 3),)],
        lambda x: x[..., 1:] / (1 + x[..., :1]),
        (
            Mistake("add 1 to the time.", lambda x: x[..., 1:] / x[..., :1]),
        ),
    ),
    Exercise(
        "hyperbolic.centroid",
        "Take the weighted sum of points, and scale it back: its inner product with itself is -1.",
        centroid,
        lambda g: [(_points(g, 5, 3), torch.rand(5, generator=g).double())],
        centroid_answer,
        (
            Mistake("the mean lies off the hyperboloid: scale it.",
                    lambda x, weights: (weights[:, None] * x).sum(0) / weights.sum()),
        ),
    ),
)  # fmt: skip
