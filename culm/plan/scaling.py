"""The scaling law of Hoffmann et al. 2022 (arXiv 2203.15556, approach 3), fitted to a few runs.

    L(N, D) = E + A / N^alpha + B / D^beta

The sum of the Huber losses of log L is minimised, as there. A few short runs do not determine five
numbers, so E and the exponents have priors: the fit of arXiv 2404.10102 to the runs of that paper,
with wide margins. Where the runs say little, the priors and so a wide interval remain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

HUBER = 1.5  # standard deviations, from which a run counts less
NOISE = 0.01  # of log L between runs that differ in the seed; no fit is taken to be closer
# Mean and standard deviation of log E (bits per byte), log A, log B, alpha, beta. A and B are left
# to the runs.
PRIOR = ((math.log(0.6), 0.5), (5.0, 20.0), (5.0, 20.0), (0.35, 0.1), (0.37, 0.1))
REPLICATES = 400
ITERATIONS = 60
REPEATS = 15.4  # repeats in which what a further one teaches falls to 1/e (arXiv 2305.16264)


@dataclass(frozen=True)
class Point:
    """A run that is done. parameters: N; tokens: D; loss: L, in bits per byte."""

    parameters: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class Law:
    """theta: (5,) fp64 of log E, log A, log B, alpha and beta. replicates: (R, 5) of the bootstrap.

    noise: standard deviation of log L around the fit. drift: by how much log L differs from the law
    of shorter runs, for each e-fold that a run is longer than those. longest: tokens of a point.
    """

    theta: Tensor
    replicates: Tensor
    noise: float
    drift: float = 0.0
    longest: float = math.inf

    @property
    def alpha(self) -> float:
        return float(self.theta[3])

    @property
    def beta(self) -> float:
        return float(self.theta[4])

    def loss(self, parameters: float, tokens: float) -> float:
        """L(N, D)."""
        return float(_log_loss(self.theta, _logs([(parameters, tokens)]))[0].exp())

    def interval(self, parameters: float, tokens: float, share: float = 0.9) -> tuple[float, float]:
        """Where the loss of one run lies with this probability, by the bootstrap and the noise."""
        log_loss = _log_loss(self.replicates, _logs([(parameters, tokens)]))[:, 0]
        beyond = max(0.0, math.log(tokens / self.longest))
        spread = math.hypot(self.noise, self.drift * beyond)
        log_loss = log_loss + spread * _normal(log_loss.shape, seed=1)
        ends = torch.tensor([(1 - share) / 2, (1 + share) / 2], dtype=torch.float64)
        low, high = log_loss.quantile(ends).exp().tolist()
        return low, high

    def optimum(self, flops: float) -> tuple[float, float]:
        """Parameters and tokens of the lowest loss where training takes 6 N D FLOPs (eq. 4)."""
        _, a, b, alpha, beta = self.theta.tolist()
        scale = math.exp((a - b + math.log(alpha / beta)) / (alpha + beta))
        parameters = scale * (flops / 6) ** (beta / (alpha + beta))
        return parameters, flops / 6 / parameters


def fit(points: Sequence[Point], noise: float = NOISE) -> Law:
    """The law of the points.

    The bootstrap is parametric, since a few points cannot be resampled: each replicate samples the
    losses around the fit, and the centres of the priors from the priors. Short runs may not follow
    the law of longer ones; how much is measured on the longest, which a law of the others predicts.
    """
    logs, losses = _logs([(one.parameters, one.tokens) for one in points]), _log_losses(points)
    centre, spread = torch.tensor(PRIOR, dtype=torch.float64).T
    theta = _best(points, noise)
    errors = _log_loss(theta, logs) - losses
    noise = max(noise, float(errors.square().mean().sqrt()))
    sampled = _log_loss(theta, logs) + noise * _normal((REPLICATES, len(points)), seed=2)
    about = torch.where(spread < 1, centre + spread * _normal((REPLICATES, 5), seed=3), centre)
    starts = theta.repeat(REPLICATES, 1)
    replicates, _ = _minimized(starts, logs, sampled, about, spread, noise)
    longest = max(point.tokens for point in points)
    return Law(theta, replicates, noise, _drift(points, longest, noise), longest)


def _drift(points: Sequence[Point], longest: float, noise: float) -> float:
    """See `Law`; 0 where all points are of one length."""
    shorter = [point for point in points if point.tokens < longest]
    if not shorter:
        return 0.0
    last = [point for point in points if point.tokens == longest]
    logs = _logs([(point.parameters, point.tokens) for point in last])
    errors = _log_loss(_best(shorter, noise), logs) - _log_losses(last)
    further = math.log(longest / max(point.tokens for point in shorter))
    return math.sqrt(max(0.0, float(errors.square().mean()) - noise**2)) / further


def _best(points: Sequence[Point], noise: float) -> Tensor:
    """(5,) the lowest cost from nine starts."""
    centre, spread = torch.tensor(PRIOR, dtype=torch.float64).T
    starts, times = centre.repeat(9, 1), torch.tensor([0.5, 1.0, 2.0])
    starts[:, 3] = centre[3] * times.repeat(3)
    starts[:, 4] = centre[4] * times.repeat_interleave(3)
    logs = _logs([(point.parameters, point.tokens) for point in points])
    found, costs = _minimized(starts, logs, _log_losses(points), centre, spread, noise)
    return found[costs.argmin()]


def effective_tokens(tokens: float, unique: float) -> float:
    """What tokens that repeat a text of `unique` tokens are worth (arXiv 2305.16264, eq. 5)."""
    repeats = max(0.0, tokens / unique - 1)
    return min(tokens, unique) + unique * REPEATS * -math.expm1(-repeats / REPEATS)


def comparable(loss: float) -> float:
    """A loss; infinity if it is no number, as for a run that diverged: it is never the least."""
    return math.inf if math.isnan(loss) else loss


def lowest(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The rate at the vertex of the parabola through three losses over log rate, within the rates.

    rates: in steps of one factor.
    """
    through = all(map(math.isfinite, losses))  # a run that diverged is no point of a parabola
    if not (through and losses[0] >= losses[1] <= losses[2]):
        return min(zip(losses, rates, strict=True))[1]
    bend = losses[0] - 2 * losses[1] + losses[2]
    shift = (losses[0] - losses[2]) / (2 * bend) if bend else 0.0
    return rates[1] * (rates[2] / rates[1]) ** shift


def _logs(sizes: Sequence[tuple[float, float]]) -> Tensor:
    """(P, 2) log N and log D."""
    return torch.tensor(sizes, dtype=torch.float64).log()


def _log_losses(points: Sequence[Point]) -> Tensor:
    """(P,) log L as measured."""
    return torch.tensor([point.loss for point in points], dtype=torch.float64).log()


def _log_loss(theta: Tensor, logs: Tensor) -> Tensor:
    """theta (..., 5), logs (P, 2) -> log L (..., P)."""
    return _parts(theta, logs).logsumexp(-1)


def _parts(theta: Tensor, logs: Tensor) -> Tensor:
    """(..., P, 3) logs of E, A / N^alpha, B / D^beta."""
    constants, exponents = theta[..., None, :3], theta[..., None, 3:]
    zero = torch.zeros_like(logs[:, :1])
    slopes = torch.cat([zero.expand(*theta.shape[:-1], -1, -1), exponents * logs], -1)
    return constants - slopes


def _minimized(
    starts: Tensor, logs: Tensor, losses: Tensor, centre: Tensor, spread: Tensor, noise: float
) -> tuple[Tensor, Tensor]:
    """Theta (R, 5) and its cost (R,), each by Levenberg-Marquardt with weights of the Huber loss.

    losses: (P,) or (R, P) of log L. centre: of the priors, (5,) or (R, 5).
    """
    theta, damping = starts.clone(), torch.ones(len(starts), 1, 1, dtype=torch.float64)

    def errors(theta: Tensor) -> Tensor:
        return (_log_loss(theta, logs) - losses) / noise

    def cost(theta: Tensor) -> Tensor:
        size = errors(theta).abs()
        huber = torch.where(size < HUBER, size.square() / 2, HUBER * (size - HUBER / 2))
        return huber.sum(-1) + ((theta - centre) / spread).square().sum(-1) / 2

    best = cost(theta)
    for _ in range(ITERATIONS):
        error, shares = errors(theta), _parts(theta, logs).softmax(-1)
        weight = (HUBER / error.abs().clamp_min(HUBER)).sqrt()
        slope = torch.cat([shares, -shares[..., 1:] * logs], -1) * (weight / noise)[..., None]
        prior = torch.diag(1 / spread).expand(len(theta), 5, 5)
        slope = torch.cat([slope, prior], -2)  # the priors are 5 further points
        error = torch.cat([error * weight, (theta - centre) / spread], -1)
        normal = slope.mT @ slope
        damped = normal + damping * torch.diag_embed(normal.diagonal(dim1=-2, dim2=-1))
        step = torch.linalg.solve(damped, slope.mT @ error[..., None])[..., 0]
        tried = cost(theta - step)
        better = tried < best
        theta = torch.where(better[:, None], theta - step, theta)
        best = torch.where(better, tried, best)
        damping = torch.where(better[:, None, None], damping / 5, damping * 5).clamp(1e-9, 1e9)
    return theta, best


def _normal(shape: Sequence[int], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)
