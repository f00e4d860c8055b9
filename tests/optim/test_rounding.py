"""Weights in bf16: rounded without a bias, so that small updates add up."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import nn

from culm.config import parse
from culm.files import read_lines
from culm.optim.adamw import AdamW
from culm.optim.rounding import StochasticRounding, rounded
from culm.optim.rule import RuleOptimizer
from culm.optim.schedule_free import ScheduleFree
from culm.optim.sgd import SGDRule
from culm.parallel.parallelize import Parallel
from culm.run.settings import RunConfig
from culm.run.train import train
from culm.train.update import Update


@pytest.mark.parametrize("value", [1.0, -3.14159, 1e-20, 7.1e30, 0.0, 0.3])
def test_the_mean_is_exact_and_each_is_a_neighbour(value: float) -> None:
    torch.manual_seed(0)
    exact = torch.full((100_000,), value)
    found = rounded(exact).float()
    assert found.unique().numel() <= 2
    gap = float(found.max() - found.min())
    assert float(found.min()) <= float(exact[0]) <= float(found.max())
    assert abs(float(found.double().mean() - exact[0].double())) <= 0.01 * gap
    assert gap <= abs(value) * 2**-7


def test_what_is_in_bf16_is_left_as_it_is() -> None:
    exact = torch.randn(1000).bfloat16()
    assert torch.equal(rounded(exact.float()), exact)


def test_updates_too_small_for_bf16_add_up() -> None:
    """Each is a tenth of half a gap; to the nearest, none of them changes a weight."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    rule, group = StochasticRounding(SGDRule(0.0, False)), {"lr": 2e-4, "weight_decay": 0.0}
    with torch.no_grad():
        for _ in range(200):
            rule.update(weight, torch.ones_like(weight), {}, group)
    assert float(weight.float().mean()) == pytest.approx(1 - 200 * 2e-4, abs=1e-3)
    nearest = torch.ones(1, dtype=torch.bfloat16)
    assert nearest - 2e-4 == nearest


@pytest.mark.parametrize("config", [AdamW(ema=0.9), ScheduleFree()])
def test_averages_of_bf16_weights_are_in_fp32(config) -> None:
    module = nn.Linear(8, 8).bfloat16()
    optimizer = config.build(module)
    for step in range(3):
        torch.manual_seed(step)
        for parameter in module.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    for state in optimizer.state.values():
        assert all(value.dtype == torch.float32 for value in state.values())
    before = [parameter.detach().clone() for parameter in module.parameters()]
    with optimizer.averaged():
        assert any(
            not torch.equal(one, other)
            for one, other in zip(before, module.parameters(), strict=True)
        )
    assert all(
        torch.equal(one, other) for one, other in zip(before, module.parameters(), strict=True)
    )


def test_a_run_in_bf16_learns_as_one_in_fp32_and_resumes_exactly(
    stage: Callable[..., dict], tmp_path: Path
) -> None:
    lines = {}
    for name, steps in (("fp32", 12), ("bf16", 12), ("again", 6), ("again", 12)):
        weights = "fp32" if name == "fp32" else "bf16"
        settings = stage("pretrain", steps=steps, batch_size=8, weights=weights)
        settings["train"] |= {"checkpoint": {"every_steps": 6}, "micro_batch_size": 8}
        train(parse(RunConfig, {**settings, "folder": str(tmp_path / name)}))
        lines[name] = [line["loss"] for line in read_lines(tmp_path / name / "metrics.jsonl")]
    assert lines["again"] == lines["bf16"] != lines["fp32"]
    assert lines["bf16"] == pytest.approx(lines["fp32"], rel=0.02)


@pytest.mark.parametrize("by", ["model", "group"])
def test_each_group_may_have_its_own_norm(by: Literal["model", "group"]) -> None:
    """Norms of 5 and 0.25; the limit is 0.5."""
    large, small = nn.Parameter(torch.tensor([3.0, 4.0])), nn.Parameter(torch.tensor([0.15, 0.2]))
    groups = [{"params": [part], "lr": 1.0, "rule": SGDRule(0.0, False)} for part in (large, small)]
    parallel = Parallel(nn.ParameterList([large, small]))
    update = Update(parallel, RuleOptimizer(groups), clip=0.5, clip_by=by)
    for part in (large, small):
        part.grad = part.detach().clone()
    assert update.norm() == pytest.approx(math.hypot(5, 0.25))
    alike = 0.5 / math.hypot(5, 0.25)
    for part, own in ((large, 0.1), (small, 1.0)):
        factor = alike if by == "model" else own
        torch.testing.assert_close(part.grad, part.detach() * factor, atol=1e-5, rtol=1e-4)


def test_copies_and_fp32_weights_in_one_group_keep_their_precision() -> None:
    """As a critic in fp32 next to a policy in bf16."""
    module = nn.Sequential(nn.Linear(8, 8).bfloat16(), nn.Linear(8, 8))
    optimizer = AdamW(rate=1e-3).build(module)
    for step in range(3):
        torch.manual_seed(step)
        for parameter in module.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    exact = module[1].weight.detach()
    assert (exact != exact.bfloat16().float()).any()


def test_what_is_not_finite_stays_so() -> None:
    values = torch.tensor([float("nan"), float("inf"), -float("inf")])
    bits = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    found = rounded(torch.cat((values, bits)))
    assert found.isnan().tolist() == [True, False, False, True]
    assert found[1:3].tolist() == [float("inf"), -float("inf")]
