"""Averaged weights, and rates by name: what the settings of every optimizer have."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from learning import build
from test_optimizers import gradients, model  # noqa: F401 - a fixture
from torch import Tensor, nn

from culm.config import SettingError, parse
from culm.convert import native
from culm.files import read_json, read_lines
from culm.objective.next_token import NextToken
from culm.optim.adamw import AdamW
from culm.optim.muon import Muon
from culm.optim.schedule_free import ScheduleFree
from culm.parallel.parallelize import Parallel
from culm.run.settings import RunConfig
from culm.run.train import train
from culm.train.checkpoint.store import CheckpointStore
from culm.train.update import Update


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


@pytest.mark.parametrize("config", [AdamW(rate=0.01, ema=0.5), Muon(rate=0.01, ema=0.5)])
def test_an_average_follows_the_weights(model, config) -> None:  # noqa: F811
    plain = config.model_copy(update={"ema": None}).build(model)
    start, average = weights(model), weights(model)
    for step in range(3):
        gradients(model, step)
        plain.step()
        average = {n: 0.5 * average[n] + 0.5 * w for n, w in weights(model).items()}
    end = weights(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(start[name])
    optimizer = config.build(model)
    for step in range(3):
        gradients(model, step)
        optimizer.step()
    for name, weight in weights(model).items():  # they learn as without it
        assert torch.equal(weight, end[name])
    with optimizer.averaged():
        for name, weight in weights(model).items():
            torch.testing.assert_close(weight, average[name])
    for name, weight in weights(model).items():
        assert torch.equal(weight, end[name])


def test_nothing_is_averaged_before_the_first_step_or_without_a_setting(model) -> None:  # noqa: F811
    before = weights(model)
    for config in (AdamW(ema=0.9), ScheduleFree(), AdamW()):
        optimizer = config.build(model)
        with optimizer.averaged():
            assert all(torch.equal(w, before[n]) for n, w in weights(model).items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_not_averaged_are_not_copied(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model of 7B in bf16, copies would take 14 GB at each evaluation."""
    module = nn.Linear(8, 8).to(dtype)
    optimizer = AdamW().build(module)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    versions = [parameter._version for parameter in module.parameters()]
    with optimizer.averaged():
        assert [parameter._version for parameter in module.parameters()] == versions


@pytest.mark.parametrize(
    "optimizer", [{"kind": "adamw", "ema": 0.6}, {"kind": "schedule_free"}], ids=["ema", "free"]
)
def test_a_run_evaluates_and_writes_the_average_and_learns_without_it(
    optimizer: dict, stage: Callable[..., dict], tmp_path: Path
) -> None:
    settings = stage("sft", steps=6, optimizer={"rate": 0.01, **optimizer})
    settings["eval"]["every_steps"] = 2
    settings["train"]["checkpoint"] = {"every_steps": 6}
    runs = {}
    for name, every in (("often", 2), ("never", None)):
        settings["eval"]["every_steps"] = every
        folder = tmp_path / name
        train(parse(RunConfig, {**settings, "folder": str(folder)}))
        runs[name] = folder
    losses = [[one["loss"] for one in read_lines(f / "metrics.jsonl")] for f in runs.values()]
    assert losses[0] == losses[1]
    written = native.load(runs["never"] / "model")[0]
    objective = build(NextToken(), native.load(runs["never"] / "model")[0])
    config = parse(RunConfig, {**settings, "folder": str(tmp_path)})
    rule = config.train.optimizer.build(objective)
    CheckpointStore(runs["never"], objective, rule).load()
    learning = weights(objective.model)
    with rule.averaged():
        for name, parameter in objective.model.named_parameters():
            assert torch.equal(parameter, dict(written.named_parameters())[name]), name
            assert not torch.equal(parameter, learning[name]), name
    found = [read_json(folder / "results.json")["loss"] for folder in runs.values()]
    assert found[0] == found[1]


def test_rates_by_pattern_and_by_depth(model) -> None:  # noqa: F811
    rates = {"mlp": 0.1, r"embed|head": 3.0, r"\.0\.": 0.5}
    optimizer = AdamW(rate=1.0, multiples=rates, layer_decay=0.5).build(model)
    found = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    by_name = {name: found[p] for name, p in model.named_parameters()}
    assert len(found) == len(list(model.parameters()))
    assert by_name["blocks.1.mlp.up.weight"] == pytest.approx(0.5 * 0.1)
    assert by_name["blocks.0.mlp.up.weight"] == pytest.approx(0.25 * 0.1)
    assert by_name["blocks.0.attention.q.weight"] == pytest.approx(0.25 * 0.5)
    assert by_name["blocks.1.attention.q.weight"] == 0.5
    assert by_name["embed.weight"] == pytest.approx(0.125 * 3)
    assert by_name["norm.weight"] == 1
    if "head.weight" in by_name:
        assert by_name["head.weight"] == 3


def test_every_rate_is_shown(model) -> None:  # noqa: F811
    optimizer = AdamW(rate=1.0, layer_decay=0.5).build(model)
    update = Update(Parallel(build(NextToken(), model)), optimizer)
    shown = update.set_rates(0.1)
    assert sorted(set(shown.values())) == sorted({group["lr"] for group in optimizer.param_groups})
    assert len(shown) == len({(g["name"], g["lr"]) for g in optimizer.param_groups})
    assert {name for name in shown if name.endswith(" x0.25")}


def test_patterns_that_change_nothing_are_refused(model) -> None:  # noqa: F811
    with pytest.raises(SettingError, match=r"multiples: 'lora' is found in the name of no"):
        AdamW(multiples={"mlp": 1.0, "lora": 2.0}).build(model)
    with pytest.raises(SettingError, match="earlier patterns take all"):
        AdamW(multiples={"mlp": 1.0, r"mlp\.up": 2.0}).build(model)
    with pytest.raises(ValueError, match="is no regular expression"):
        AdamW(multiples={"(": 2.0})
