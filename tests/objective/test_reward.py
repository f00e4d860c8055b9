"""Reward models: where the score is read, and that they learn what is preferred."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from learning import build, fit, mean
from parity import Difference, Parity
from tiny import model

from culm.adapt.heads import with_scalar_head
from culm.adapt.lora import LoRA
from culm.batch import Batch, counts_of
from culm.config import SettingError, parse
from culm.objective.reward import Reward, RewardObjective
from culm.optim.adamw import AdamW
from culm.run.objective import change_model
from culm.run.settings import RunConfig

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


@pytest.mark.parametrize(
    "adapter", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["full", "lora"]
)
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


def test_heads_learn_each_by_itself_and_the_loss_is_their_mean(parity: Parity) -> None:
    base = model()
    with_scalar_head(base, 0, scores=3)
    objective, batch = build(Reward(heads=3), base), pairs(6, 0)
    loss = objective(batch)
    mean(loss, batch).backward()
    ensemble = base.head.weight.detach()
    single = model()
    with_scalar_head(single, 0)
    totals, gradients = [], []
    for number in range(3):
        with torch.no_grad():
            single.head.weight.copy_(ensemble[number : number + 1])
        one = build(Reward(), single)
        single.zero_grad()
        alone = one(batch)
        mean(alone, batch).backward()
        totals.append(alone.terms["bradley_terry"].total.item())
        pair = base.head.weight.grad[number], single.head.weight.grad[0] / 3
        torch.testing.assert_close(*pair)
        gradients.append(float((pair[0] - pair[1]).abs().max() / pair[1].abs().max()))
    found = loss.terms["bradley_terry"].total.item()
    assert found == pytest.approx(sum(totals) / 3, rel=1e-5)
    away = Difference(abs(found - sum(totals) / 3) / 6, max(gradients))  # of six pairs
    parity.note("reward", "ensemble of heads", "the same models alone", away)
    every = base.head_scores(batch.tokens)[torch.arange(12), batch.last]
    torch.testing.assert_close(base.scores(batch.tokens), base.head_scores(batch.tokens).mean(-1))
    spread = loss.metrics["spread"]
    assert spread.per == "rows"
    assert spread.total.item() == pytest.approx(every.std(-1, correction=0).sum().item())


def test_the_order_of_answers_in_a_ranking_changes_nothing() -> None:
    objective, batch = judge(loss="plackett_luce"), pairs(6, 0)
    place = torch.tensor([0.0, 1, 2, 0, 1, 0, 1, 2, 3, 0, 1, 2])
    score = torch.tensor([3.0, 1, 2, 5, 4, 0, 1, 1, 2, 3, 2, 1])
    ranked = replace(
        batch, counts={**batch.counts, "rankings": 4.0}, extra={"score": score, "place": place}
    )
    order = torch.tensor([2, 0, 1, 4, 3, 8, 7, 6, 5, 9, 11, 10])
    moved = ranked.select(order)
    moved = replace(moved, extra={**moved.extra, "place": place}, counts=ranked.counts)
    torch.testing.assert_close(mean(objective(moved), moved), mean(objective(ranked), ranked))
    shares = objective(ranked).metrics["accuracy"]
    assert shares.per == "rankings"
    assert 0 <= shares.total.item() <= 4


@pytest.mark.slow
def test_a_number_is_learned() -> None:
    """From the count of sevens; a head that knows nothing has the variance as its error."""

    def labelled(number: int) -> list[Batch]:
        batch = pairs(16, number)
        real = torch.arange(LENGTH) < batch.lengths[:, None]
        sevens = ((batch.tokens == 7) & real).sum(1).float()
        return [replace(batch, extra={"label": sevens})]

    objective = judge(loss="regression")
    [test] = labelled(10_000)
    fit(objective, labelled, 80, AdamW(rate=1e-2, weight_decay=0.0).build(objective), clip=1.0)
    error = mean(objective(test), test).item()
    assert error < 0.5 * test.extra["label"].var().item()


def test_a_process_model_scores_the_end_of_each_step(parity: Parity) -> None:
    objective, batch = judge(loss="process"), pairs(6, 0)
    labels = torch.full(batch.tokens.shape, torch.nan)
    labels[:, 2], labels[0, 4] = torch.arange(12) % 2, 0.25
    batch = replace(batch, extra={"label": labels}, counts={**batch.counts, "targets": 13.0})
    loss = objective(batch)
    scores = objective.model.scores(batch.tokens)
    right = scores[:, 2].sigmoid()
    wanted = torch.where(labels[:, 2] > 0, -right.log(), -(1 - right).log()).sum()
    soft = scores[0, 4].sigmoid()
    wanted = wanted - 0.25 * soft.log() - 0.75 * (1 - soft).log()
    found = loss.terms["process"].total
    torch.testing.assert_close(found, wanted)
    numbers = [found.item() / 13], [wanted.item() / 13]
    parity.equal("reward", "process, per step", "definition", *numbers, 1e-5)
    count = ((scores[:, 2] > 0) == (labels[:, 2] > 0)).sum() + (soft < 0.5)
    assert loss.metrics["accuracy"].total.item() == count
    mean(loss, batch).backward()
    assert all(torch.isfinite(p.grad).all() for p in objective.parameters() if p.grad is not None)


def test_settings_without_an_effect_are_refused() -> None:
    for settings, message in (
        ({"loss": "regression", "margin": 1.0}, "margin: it has an effect with loss=bradley_terry"),
        ({"loss": "process", "centering": 0.1}, "centering: it has an effect"),
        ({"loss": "margin_ranking", "smoothing": 0.1}, "smoothing: it has an effect"),
    ):
        with pytest.raises(SettingError, match=message):
            parse(Reward, settings)
    assert Reward(loss="margin_ranking").margins(pairs(2, 0)) == 1.0
    assert Reward(margin=0.5).margins(pairs(2, 0)) == 0.5


@pytest.mark.parametrize(
    ("format", "message"),
    [
        ("ranking", r"reward with loss=plackett_luce learns from rankings"),
        ("steps", r"reward with loss=process learns from steps"),
        ("label", r"kto and reward with loss=regression learn from labels"),
    ],
)
def test_data_of_another_form_names_the_loss_that_learns_from_it(format: str, message: str) -> None:
    settings = {
        "start": "x",
        "data": {"path": "x.jsonl", "format": format},
        "train": {"steps": 1, "objective": "reward"},
    }
    with pytest.raises(SettingError, match=message):
        parse(RunConfig, settings)


@pytest.mark.parametrize(
    ("objective", "used"),
    [
        ({"kind": "reward"}, True),
        ({"kind": "reward", "loss": "margin_ranking"}, True),
        ({"kind": "reward", "margin": 0.5}, False),
        ({"kind": "preference"}, False),
        ({"kind": "preference", "reference": "precomputed"}, False),
    ],
    ids=str,
)
def test_margins_of_records_without_effect_are_refused(objective: dict, used: bool) -> None:
    settings = {
        "start": "x",
        "data": {"path": "x.jsonl", "format": {"kind": "pair", "margin": "by"}},
        "train": {"steps": 1, "objective": objective},
    }
    if used:
        assert parse(RunConfig, settings).train.objective.optional_columns == ("margin",)
        return
    with pytest.raises(SettingError, match=r"data\.format\.margin: \w+ with these settings does"):
        parse(RunConfig, settings)


def test_another_number_of_heads_is_refused() -> None:
    base = model()
    with_scalar_head(base, 0)
    objective = {"kind": "reward", "heads": 2}
    config = parse(
        RunConfig,
        {
            "start": "x",
            "data": {"path": "x", "format": "pair"},
            "train": {"steps": 1, "objective": objective},
        },
    )
    with pytest.raises(SettingError, match=r"trains 2 heads, and the model has 1; give"):
        change_model(config, base)
