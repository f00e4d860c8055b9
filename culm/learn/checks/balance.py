"""Exercises of lesson 5: experts with an even load."""

from __future__ import annotations

import torch
from torch import Tensor

from culm.learn.checks.experts import choices
from culm.learn.exercise import Exercise, Mistake, normal
from culm.model.mlp import balance
from culm.model.mlp.moe import MoE, Router
from culm.objective.experts import move_bias


def load(chosen: Tensor, experts: int) -> Tensor:
    counts = torch.bincount(chosen.flatten(), minlength=experts)
    return counts / counts.float().mean()


def load_answer(chosen: Tensor, experts: int) -> Tensor:
    counts = torch.zeros(experts)
    for expert in chosen.flatten().tolist():
        counts[expert] += 1
    return counts / counts.mean()


def balance_loss(logits: Tensor, chosen: Tensor) -> Tensor:
    shares = logits.softmax(-1)
    assigned = torch.zeros_like(shares).scatter(-1, chosen, 1.0)
    return balance.switch_loss(shares, assigned) / len(logits)


def balance_loss_answer(logits: Tensor, chosen: Tensor) -> Tensor:
    experts = logits.shape[1]
    fractions = torch.bincount(chosen.flatten(), minlength=experts) / chosen.numel()
    return experts * (fractions * logits.softmax(-1).mean(0)).sum()


def _balance_unscaled(logits: Tensor, chosen: Tensor) -> Tensor:
    return balance_loss_answer(logits, chosen) / logits.shape[1]


def _balance_of_counts(logits: Tensor, chosen: Tensor) -> Tensor:
    fractions = torch.bincount(chosen.flatten(), minlength=logits.shape[1]) / chosen.numel()
    return logits.shape[1] * fractions.square().sum()


def z_loss(logits: Tensor) -> Tensor:
    return balance.z_loss(logits, None) / len(logits)


def z_loss_answer(logits: Tensor) -> Tensor:
    return logits.exp().sum(-1).log().square().mean()


def moved_bias(bias: Tensor, counts: Tensor, rate: float) -> Tensor:
    config = MoE(experts=len(bias), hidden=1, selection_bias=True, bias_rate=rate)
    router = Router(config, 1)
    router.selection = bias.clone()
    move_bias(router, counts)
    return router.selection


def moved_bias_answer(bias: Tensor, counts: Tensor, rate: float) -> Tensor:
    signs = (counts.mean() - counts).sign()
    return bias + rate * (signs - signs.mean())


def _bias_wrong_way(bias: Tensor, counts: Tensor, rate: float) -> Tensor:
    return moved_bias_answer(bias, -counts, rate)


def _bias_by_amount(bias: Tensor, counts: Tensor, rate: float) -> Tensor:
    return bias + rate * (counts.mean() - counts)


EXERCISES = (
    Exercise(
        "balance.load",
        "Give the load of each expert as a multiple of the mean load.",
        load,
        lambda g: [(choices(g, 20, 5, 2), 5), (torch.tensor([[0], [0]]), 3)],
        load_answer,
        (
            Mistake(
                "as a multiple of the mean: 1 is even.",
                lambda chosen, n: load_answer(chosen, n) / n,
            ),
        ),
    ),
    Exercise(
        "balance.balance_loss",
        "Multiply for each expert its fraction of the assignments and its mean score, add up, and "
        "multiply by the number of experts.",
        balance_loss,
        lambda g: [
            (normal(g, 20, 4), choices(g, 20, 4, 2)),
            (normal(g, 3, 2), choices(g, 3, 2, 1)),
        ],
        balance_loss_answer,
        (
            Mistake("times the number of experts, so that even is 1.", _balance_unscaled),
            Mistake("counts have no gradient: the mean scores must be in it.", _balance_of_counts),
        ),
    ),
    Exercise(
        "balance.z_loss",
        "Give the mean of the squared log of the sum of e to the power of the logits.",
        z_loss,
        lambda g: [(normal(g, 6, 4),), (torch.zeros(2, 3),)],
        z_loss_answer,
        (
            Mistake("square it.", lambda logits: logits.logsumexp(-1).mean()),
            Mistake(
                "the sum is over the experts of a token.",
                lambda logits: logits.exp().sum(0).log().square().mean(),
            ),
        ),
    ),
    Exercise(
        "balance.moved_bias",
        "Raise the bias of experts below the mean load by the rate, lower the others, and keep the "
        "sum of all biases.",
        moved_bias,
        lambda g: [
            (torch.zeros(4), torch.tensor([8.0, 2.0, 3.0, 7.0]), 0.1),
            (normal(g, 3), torch.tensor([9.0, 0.0, 0.0]), 0.01),
        ],
        moved_bias_answer,
        (
            Mistake("an expert with little load must become more likely.", _bias_wrong_way),
            Mistake("all move by the same step: only the sign counts.", _bias_by_amount),
        ),
    ),
)
