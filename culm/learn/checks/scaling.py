"""Exercises of lesson 4b: scaling laws."""

from __future__ import annotations

import math

import numpy as np
import torch

from culm.learn.exercise import Exercise, Mistake
from culm.plan.scaling import Law

Theta = tuple[float, float, float, float, float]  # E, A, alpha, B, beta


def _law(theta: Theta) -> Law:
    e, a, alpha, b, beta = theta
    numbers = [math.log(e), math.log(a), math.log(b), alpha, beta]
    stacked = torch.tensor(numbers, dtype=torch.float64)
    return Law(stacked, stacked[None], 0.0)


def law(theta: Theta, parameters: float, tokens: float) -> float:
    return _law(theta).loss(parameters, tokens)


def law_answer(theta: Theta, parameters: float, tokens: float) -> float:
    e, a, alpha, b, beta = theta
    return e + a / parameters**alpha + b / tokens**beta


def optimum(theta: Theta, budget: float) -> tuple[float, float]:
    return _law(theta).optimum(budget)


def optimum_answer(theta: Theta, budget: float) -> tuple[float, float]:
    _, a, alpha, b, beta = theta
    scale = (alpha * a / (beta * b)) ** (1 / (alpha + beta))
    parameters = scale * (budget / 6) ** (beta / (alpha + beta))
    return parameters, budget / 6 / parameters


def _optimum_of_thirds(theta: Theta, budget: float) -> tuple[float, float]:
    parameters = (budget / 6 / 20) ** 0.5
    return parameters, 20 * parameters


def power(xs: list[float], ys: list[float]) -> tuple[float, float]:
    slope, offset = np.polyfit(np.log(xs), np.log(ys), 1)
    return float(np.exp(offset)), float(slope)


def power_answer(xs: list[float], ys: list[float]) -> tuple[float, float]:
    a, b = torch.tensor(xs).double().log(), torch.tensor(ys).double().log()
    slope = ((a - a.mean()) * (b - b.mean())).sum() / (a - a.mean()).square().sum()
    return float((b.mean() - slope * a.mean()).exp()), float(slope)


def _straight(xs: list[float], ys: list[float]) -> tuple[float, float]:
    slope, offset = np.polyfit(xs, ys, 1)
    return float(offset), float(slope)


CHINCHILLA: Theta = (1.69, 406.4, 0.34, 410.7, 0.28)  # of arXiv 2203.15556, nats per token


EXERCISES = (
    Exercise(
        "scaling.power",
        "Fit y = c x^p by least squares between the logarithms; give c and p.",
        power,
        lambda g: [
            ([1.0, 10.0, 100.0], [8.0, 4.0, 2.0]),
            ([2.0, 3.0, 5.0, 9.0], [1.0, 1.3, 1.9, 3.1]),
        ],
        power_answer,
        (Mistake("a power is a straight line between logarithms only.", _straight),),
    ),
    Exercise(
        "scaling.law",
        "Give the loss E + A / N^alpha + B / D^beta.",
        law,
        lambda g: [(CHINCHILLA, 70e9, 1.4e12), (CHINCHILLA, 1e6, 1e8)],
        law_answer,
        (
            Mistake(
                "E is what no model can predict: it stays.",
                lambda theta, n, d: law_answer(theta, n, d) - theta[0],
            ),
        ),
    ),
    Exercise(
        "scaling.optimum",
        "Give the parameters and tokens of the lowest loss for 6 N D = budget.",
        optimum,
        lambda g: [(CHINCHILLA, 5.76e23), (CHINCHILLA, 1e18)],
        optimum_answer,
        (Mistake("20 tokens per parameter is a rule of thumb; use the law.", _optimum_of_thirds),),
        tolerance=1e-4,
    ),
)
