"""Runs for a time: the law's optimum is proposed, and a tiny budget goes all the way."""

import math
import random

import pytest
import torch

from culm.compose import compose
from culm.config import SettingError, parse
from culm.model.transformer import TransformerConfig
from culm.plan.family import Family
from culm.plan.model import ModelCost
from culm.plan.scaling import Law
from culm.plan.speed import Clock
from culm.run.budget.ladder import best_rate, ladder_of
from culm.run.budget.micro_runs import MicroRuns, transferred
from culm.run.budget.proposal import MARGIN, choices
from culm.run.settings import read_run
from culm.verbs.plan_budget import pasted, seconds_of, show_budget

THETA = torch.tensor([math.log(0.6), 3.0, 5.0, 0.3, 0.4], dtype=torch.float64)
KNOWN = Law(THETA, THETA[None], 0.01)


class Plain(Family):
    """By formula, since counting takes long."""

    def cost(self, size):
        parameters = 12 * size.layers * size.width**2
        return ModelCost(parameters, 0, parameters, 1, 2.0 * parameters, 6.0 * parameters, 0)


def plain(name="nano", context=64):
    return Plain(parse(TransformerConfig, compose(name, "model").values), context)


def test_the_size_is_the_optimum_of_the_law():
    """In the family, next to the closed form."""
    sizes, clock, seconds = plain(), Clock(0.0, 1e12), 3600.0
    best, *others = choices(sizes, KNOWN, clock, seconds, unique=10**12)
    flops = sizes.cost(best.size).training_flops
    assert best.tokens == pytest.approx(MARGIN * seconds * 1e12 / flops)
    assert all(best.loss <= other.loss for other in others)
    parameters, _ = KNOWN.optimum(MARGIN * seconds * 1e12)
    assert sizes.parameters(best.size) == pytest.approx(parameters, rel=0.3)


def test_a_larger_model_where_text_would_be_read_too_often():
    sizes, clock = plain(), Clock(0.0, 1e12)
    much, little = (choices(sizes, KNOWN, clock, 3600, unique)[0] for unique in (10**12, 10**6))
    assert sizes.parameters(little.size) > sizes.parameters(much.size)
    assert little.loss > much.loss


def test_a_clock_is_the_line_through_what_was_measured():
    clock = Clock.measured([1e6, 2e6, 4e6], [2e-6, 3e-6, 5e-6])
    assert (clock.fixed, clock.rate) == pytest.approx((1e-6, 1e12))
    assert Clock.measured([1e6, 2e6], [3e-6, 2e-6]).fixed == 0


def test_rates_are_tried_until_one_is_the_best():
    tried = []

    def loss(rate):
        tried.append(rate)
        return math.log(rate / 0.05) ** 2

    rate, inside = best_rate(loss, 0.002)
    assert inside
    assert rate == pytest.approx(0.05)
    assert len(tried) == 6
    assert best_rate(lambda rate: -rate, 1.0) == (pytest.approx(3.0**4), False)


def test_a_rate_with_which_a_run_diverges_is_not_the_best():
    """Nor a point of the parabola."""
    losses = {-1: 2.0, 0: 1.0, 1: math.nan}
    found = best_rate(lambda rate: losses[round(math.log(rate, 3))], 1.0)
    assert found == (pytest.approx(1.0), True)


def test_rates_of_other_widths():
    config = read_run("demo")[0]
    assert transferred(0.01, config, 64, 256) == pytest.approx(0.005)  # Muon: the root
    adamw = read_run("demo", ["train.optimizer=adamw"])[0]
    assert transferred(0.01, adamw, 64, 256) == pytest.approx(0.0025)
    dial = read_run("depth", ["model.depth=2"])[0]
    assert transferred(0.01, dial, 64, 256) == 0.01  # its rule is in the model


def test_micro_runs_cost_no_more_than_their_share_and_are_chosen_once(tmp_path):
    config = read_run("demo", ["train.context=128"])[0]
    sizes = plain("demo", 128)
    first = ladder_of(config, sizes, 7200, 1e11, 1e11, tmp_path)
    assert first.seconds <= 300
    widths = [model.width for model in first.models]
    assert widths == sorted(set(widths))
    assert ladder_of(config, sizes, 7200, 2e9, 2e9, tmp_path) == first
    assert {one.tokens for one in first.grid(config, 0.01)} == set(first.tokens)
    with pytest.raises(SettingError, match="--budget: the smallest micro-runs would take"):
        ladder_of(config, sizes, 1, 1e9, 1e9, tmp_path)


def test_a_budget_that_pays_for_nothing_is_refused_before_the_data(tmp_path):
    """Whose preparation may take hours: here there are none, and nobody notices."""
    settings = [f"data.path={tmp_path / 'none.txt'}", f"folder={tmp_path / 'run'}"]
    with pytest.raises(SettingError, match="--budget: the smallest micro-runs would take"):
        show_budget("demo", read_run("demo", settings)[0], "1s")
    assert not (tmp_path / "run-budget").exists()


@pytest.mark.parametrize("text", ["2", "h", "2 hours", "0m", "-1h", ""])
def test_a_budget_is_a_time(text):
    with pytest.raises(SettingError, match="--budget: expected a time such as 30m, 2h or 1d"):
        seconds_of(text)
    assert [seconds_of(one) for one in ("90s", "30m", "1.5h", "1d")] == [90, 1800, 5400, 86400]


def test_a_run_that_starts_from_a_model_has_no_size_to_propose():
    config = read_run("sft", ["start=runs/x"])[0]
    with pytest.raises(SettingError, match="--budget: it proposes the size of a new model"):
        MicroRuns(config)


@pytest.mark.slow
def test_a_tiny_budget_goes_all_the_way(tmp_path, capsys):
    words = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("a", "e", "in", "ot", "ul")]
    chance, text = random.Random(0), tmp_path / "text"
    text.mkdir()
    for n in range(200):
        (text / f"{n}.txt").write_text(" ".join(chance.choices(words, k=300)))
    settings = [
        f"data.path={text}", f"folder={tmp_path / 'run'}", "train.context=32",
        "eval.measures={held_out: {tokens: 2000}, samples: null}", "data.held_out=0.1",
    ]  # fmt: skip
    found = show_budget("demo", read_run("demo", settings)[0], "60s")
    out = capsys.readouterr().out
    assert "Proposal" in out
    assert found.proposal.low < found.proposal.loss < found.proposal.high
    proposed, _ = read_run(str(tmp_path / "run-budget" / "proposal.yaml"))
    assert proposed == found.proposal.config
    again, _ = read_run("demo", [*settings, *pasted(proposed)])
    assert again.model == proposed.model
    assert again.train.steps == proposed.train.steps
    stamps = {path: path.stat().st_mtime for path in (tmp_path / "run-budget").glob("w*/model")}
    show_budget("demo", read_run("demo", settings)[0], "60s")
    assert stamps == {
        path: path.stat().st_mtime for path in (tmp_path / "run-budget").glob("w*/model")
    }
