"""Weights in bf16: rounded without a bias, so that small updates add up."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from culm.config import parse
from culm.files import read_lines
from culm.optim.adamw import AdamW
from culm.optim.rounding import StochasticRounding, rounded
from culm.optim.schedule_free import ScheduleFree
from culm.optim.sgd import SGDRule
from culm.run.settings import RunConfig
from culm.run.train import train


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


def test_each_group_has_its_own_norm(stage: Callable[..., dict], tmp_path: Path) -> None:
    """A group with a small gradient is left alone where another one is clipped."""
    runs = {}
    for by in ("model", "group"):
        settings = stage("pretrain", steps=2, clip=0.05, clip_by=by)
        train(parse(RunConfig, {**settings, "folder": str(tmp_path / by)}))
        runs[by] = read_lines(tmp_path / by / "metrics.jsonl")
    assert runs["group"][0]["grad_norm"] == pytest.approx(runs["model"][0]["grad_norm"], rel=1e-5)
    assert runs["group"][1]["loss"] != runs["model"][1]["loss"]
