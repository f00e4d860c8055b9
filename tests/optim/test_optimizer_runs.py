"""Every kind of optimizer in a run: planned, resumed, and on two ranks."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml
from stages import untimed

from culm.config import parse
from culm.files import read_lines
from culm.optim import Optimizer
from culm.optim.optimizer import OptimizerConfig
from culm.optim.schedule import Constant
from culm.plan.needs import Step, needs_of
from culm.run.assemble import assemble
from culm.run.settings import RunConfig, read_run
from culm.run.train import train

sys.path.append(str(Path(__file__).parents[1] / "parallel"))
from test_ranks import assert_same, on_two_ranks

CONFIGS = {
    kind.model_fields["kind"].default: kind
    for kind in get_args(get_args(Optimizer)[0])
}  # fmt: skip
MORE = {kind: {"rank": 8, "refresh_steps": 3} for kind in ("galore", "galore8bit")}
RATES = {"lion": 1e-3, "sgd": 0.1, "riemannian_sgd": 0.1}


def settings_of(kind: str, stage: Callable[..., dict], folder: Path, **more: object) -> dict:
    optimizer = {"kind": kind, "rate": RATES.get(kind, 5e-3), **MORE.get(kind, {})}
    settings = stage("pretrain", steps=6, batch_size=8, micro_batch_size=4, optimizer=optimizer)
    settings["model"]["width"], settings["model"]["mlp"] = 48, {"kind": "swiglu", "hidden": 96}
    settings["train"] |= {"checkpoint": {"every_steps": 4}, **more}
    return {**settings, "folder": str(folder)}


def test_all_kinds_are_here() -> None:
    assert len(CONFIGS) == 11
    assert {"adamw", "muon", "adamw8bit", "galore", "galore8bit", "schedule_free"} < set(CONFIGS)


# Those whose states are not tensors like the parameters; the others are slow tests.
FIRST = ("muon", "galore8bit", "schedule_free")


@pytest.mark.parametrize(
    "kind",
    [kind if kind in FIRST else pytest.param(kind, marks=pytest.mark.slow) for kind in CONFIGS],
)
def test_a_run_resumes_exactly(kind: str, stage: Callable[..., dict], tmp_path: Path) -> None:
    whole, parted = (settings_of(kind, stage, tmp_path / name) for name in ("one", "two"))
    train(parse(RunConfig, whole))
    parted["train"]["schedule"] = Constant().model_dump()
    train(parse(RunConfig, {**parted, "train": {**parted["train"], "steps": 4}}))
    train(parse(RunConfig, parted))
    lines = [read_lines(tmp_path / name / "metrics.jsonl") for name in ("one", "two")]
    for one, two in zip(*lines, strict=True):
        assert untimed(one) == untimed(two)
    assert lines[0][-1]["loss"] < lines[0][0]["loss"]
    files = [tmp_path / name / "model" / "model.safetensors" for name in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_plan_knows_the_memory_of_its_states(
    kind: str, stage: Callable[..., dict], tmp_path: Path
) -> None:
    config = parse(RunConfig, settings_of(kind, stage, tmp_path / "run", steps=1))
    train(config)
    run = assemble(config, tmp_path / "run", torch.device("cpu"))
    rule: OptimizerConfig = config.train.optimizer
    optimizer = rule.build(run.objective)
    for parameter in run.objective.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    held = sum(v.nbytes for state in optimizer.state.values() for v in state.values())
    hollow = run.objective.to("meta")
    hollow.model.tie()
    step = Step(context=16, batch_size=2, at_once=1)
    assert needs_of(hollow, rule, step).memory.optimizer == held


@pytest.mark.slow
def test_two_ranks_follow_one(stage: Callable[..., dict], tmp_path: Path) -> None:
    files = {}
    for kind in CONFIGS:
        settings = settings_of(kind, stage, tmp_path / f"{kind}-one")
        if kind in MORE:  # a later projection differs much where singular values are nearly equal
            settings["train"]["optimizer"]["refresh_steps"] = 10
        files[kind] = tmp_path / f"{kind}.yaml"
        files[kind].write_text(yaml.safe_dump(settings))
    layouts = ("ddp", "fsdp")
    on_two_ranks(
        *(
            f"{file},parallel.data={layout},folder={tmp_path}/{kind}-{layout}"
            for kind, file in files.items()
            for layout in layouts
        )
    )
    for kind, file in files.items():
        train(read_run(str(file))[0])
        for layout in layouts:
            assert_same(tmp_path / f"{kind}-one", tmp_path / f"{kind}-{layout}")
