"""Reward models: where the score is read, and that they learn what is preferred."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from learning import build, fit, mean
from tiny import model

from culm.adapt.heads import with_scalar_head
from culm.adapt.lora import LoRA
from culm.batch import Batch, counts_of
from culm.objective.reward import Reward, RewardObjective
from culm.optim.adamw import AdamW

WORDS, LENGTH = 31, 12


def judge(adapter: bool = False, **config) -> RewardObjective:
    base = model()
    if adapter:
        LoRA(rank=4).apply(base, 0)
    with_scalar_head(base, 0)
    return build(Reward(**config), base)  # type: ignore[return-value]


def pairs(count: int, seed: int, flipped: bool = False) -> Batch:
    """Of each pair the answer with more sevens is the better one; random labels if flipped."""
    chance = torch.Generator().manual_seed(seed)
    tokens = torch.randint(WORDS, (count, 2, LENGTH), generator=chance)
    places = torch.rand(count, 2, LENGTH, generator=chance)
    tokens[:, 0][places[:, 0] < 0.4] = 7
    tokens[:, 1][places[:, 1] < 0.1] = 7
    lengths = torch.randint(6, LENGTH + 1, (count, 2), generator=chance)
    real = torch.arange(LENGTH) < lengths[..., None]
    sevens = ((tokens == 7) & real).sum(-1)
    swap = sevens[:, 0] < sevens[:, 1]
    if flipped:
        swap = torch.rand(count, generator=chance) < 0.5
    tokens[swap], lengths[swap] = tokens[swap].flip(1), lengths[swap].flip(1)
    rows, sizes = tokens.flatten(0, 1), lengths.flatten()
    targets = rows.roll(-1, 1)
    counts = {**counts_of(targets, sizes), "pairs": float(count)}
    positions = torch.arange(LENGTH).expand_as(rows)
    return Batch(rows, targets, positions, lengths=sizes, counts=counts)


def step(flipped: bool, number: int) -> list[Batch]:
    return [pairs(32, number, flipped)]


def accuracy(objective: RewardObjective, batch: Batch) -> float:
    return float(objective(batch).metrics["accuracy"].total) / batch.counts["pairs"]


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_it_learns_what_is_preferred_and_nothing_from_random_labels(adapter: bool) -> None:
    found = []
    for flipped in (False, True):
        objective = judge(adapter)
        optimizer = AdamW(rate=3e-3, weight_decay=0.0).build(objective)
        fit(objective, partial(step, flipped), 60, optimizer, clip=1.0)
        found.append(accuracy(objective, pairs(400, 10_000)))
    assert found[0] > 0.9
    assert 0.3 < found[1] < 0.7


def test_padding_behind_an_answer_changes_nothing() -> None:
    objective, batch = judge(), pairs(6, 0)
    wide = replace(
        batch,
        tokens=torch.nn.functional.pad(batch.tokens, (0, 5), value=3),
        targets=torch.nn.functional.pad(batch.targets, (0, 5), value=3),
        positions=torch.arange(LENGTH + 5).clamp_max(11).expand(12, -1),
    )
    one, two = (mean(objective(each), each) for each in (batch, wide))
    torch.testing.assert_close(two, one)


def test_swapped_pairs_swap_the_margin_and_a_constant_moves_centering_alone() -> None:
    objective, batch = judge(), pairs(6, 0)
    order = torch.arange(12).view(-1, 2).flip(1).flatten()
    swapped = batch.select(order)
    one, two = (objective(each).metrics["margin"].total for each in (batch, swapped))
    torch.testing.assert_close(two, -one)
    centred = judge(centering=0.01)
    terms = centred(batch).terms
    torch.testing.assert_close(
        terms["bradley_terry"].total, objective(batch).terms["bradley_terry"].total
    )
    rewards = centred.model.scores(batch.tokens).gather(1, batch.last[:, None])[:, 0]
    sums = (rewards[0::2] + rewards[1::2]).square().sum()
    torch.testing.assert_close(terms["centering"].total, sums)
    assert terms["centering"].weight == 0.01


def test_a_margin_is_subtracted() -> None:
    objective, batch = judge(), pairs(6, 0)
    margin = torch.arange(6.0).repeat_interleave(2)
    loss = objective(replace(batch, extra={"margin": margin})).terms["bradley_terry"].total
    difference = objective(batch).metrics
    assert loss > objective(batch).terms["bradley_terry"].total
    rewards = objective.model.scores(batch.tokens).gather(1, batch.last[:, None])[:, 0]
    wanted = -torch.nn.functional.logsigmoid(rewards[0::2] - rewards[1::2] - margin[0::2]).sum()
    torch.testing.assert_close(loss, wanted)
    assert difference.keys() >= {"accuracy", "margin", "reward_chosen", "reward_rejected"}
