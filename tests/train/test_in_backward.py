"""Parameters that are updated within the backward: the same run, with one gradient in memory."""

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from learning import Given, Recorder, build
from stages import untimed, weights_in

from culm.config import SettingError, parse
from culm.files import read_lines
from culm.objective.next_token import NextToken
from culm.optim.adamw import AdamW
from culm.optim.galore import GaLore
from culm.optim.muon import Muon
from culm.optim.optimizer import OptimizerConfig
from culm.optim.rule import RuleOptimizer
from culm.optim.schedule import Constant
from culm.parallel.checkpointing import checkpoint_blocks
from culm.parallel.parallelize import Parallel
from culm.plan.needs import Step, needs_of
from culm.run.settings import RunConfig
from culm.run.train import train
from culm.train.trainer import Trainer
from culm.train.update import Update, UpdateInBackward

OPTIMIZERS = [AdamW(rate=0.01), Muon(rate=0.01), GaLore(rate=0.01, rank=4, refresh_steps=2)]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("config", OPTIMIZERS, ids=lambda one: one.kind)
def test_the_same_weights_to_the_bit(config: OptimizerConfig, checkpointing: bool) -> None:
    """The same losses, norms and ratios too; the embedding is tied, and used at both ends."""
    runs = []
    for kind in (Update, UpdateInBackward):
        objective, recorder = build(NextToken(), tiny.model()), Recorder()
        if checkpointing:
            checkpoint_blocks(objective)
        more = {"clip": None} if kind is Update else {}
        update = kind(Parallel(objective), config.build(objective), ratio_every=2, **more)
        trainer = Trainer(update, Constant(), listener=recorder)
        trainer.dry_run(Given([tiny.rows()]), 0)
        trainer.fit(Given([tiny.rows()]), 4)
        assert all(p.grad is None for p in objective.parameters())
        runs.append((recorder.steps, [p.detach() for p in objective.parameters()]))
    (plain, weights), (early, others) = runs
    assert all(torch.equal(one, other) for one, other in zip(weights, others, strict=True))
    assert [step.loss for step in plain] == [step.loss for step in early]
    for one, other in zip(plain, early, strict=True):
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-5)
        ratio = one.metrics.get("update_ratio")
        assert other.metrics.get("update_ratio") == (ratio and pytest.approx(ratio, rel=1e-5))


def test_one_gradient_is_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = build(NextToken(), tiny.model())
    parameters, held = list(objective.parameters()), []
    change = RuleOptimizer.update

    def watched(self, group, learned):
        held.append(sum(p.grad.nbytes for p in parameters if p.grad is not None))
        change(self, group, learned)

    monkeypatch.setattr(RuleOptimizer, "update", watched)
    update = UpdateInBackward(Parallel(objective), AdamW().build(objective))
    Trainer(update, Constant()).fit(Given([tiny.rows()]), 1)
    assert len(held) == len(parameters)
    assert max(held) == max(p.nbytes for p in parameters)


def test_a_plan_counts_one_gradient() -> None:
    def gradients(in_backward: bool) -> int:
        hollow = build(NextToken(), tiny.model().to("meta"))
        hollow.model.tie()
        step = Step(12, 8, 8, in_backward=in_backward)
        return needs_of(hollow, AdamW(), step).memory.gradients

    sizes = [parameter.nbytes for parameter in tiny.model().parameters()]
    assert (gradients(False), gradients(True)) == (sum(sizes), max(sizes))


def settings_of(stage: Callable[..., dict], folder: Path, **more: object) -> dict:
    early = {"optimizer_in_backward": True, "clip": None, "micro_batch_size": None, **more}
    return {**stage("sft", steps=4, **early), "folder": str(folder)}


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["fp32", "bf16"])
def test_a_run_resumes_to_the_bit(weights: str, stage: Callable[..., dict], tmp_path: Path) -> None:
    for name, ends in (("one", (4,)), ("two", (2, 4))):
        for steps in ends:
            settings = settings_of(stage, tmp_path / name, weights=weights)
            settings["train"]["steps"] = steps
            train(parse(RunConfig, settings))
    one, two = (read_lines(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [untimed(line) for line in one] == [untimed(line) for line in two]
    ours, theirs = weights_in(tmp_path / "one"), weights_in(tmp_path / "two")
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"clip": 1.0}, "clip needs all gradients of a step together.*use clip=null"),
        ({"spike": {}}, "spike needs all .* use spike=null"),
        ({"precision": "fp16"}, "precision needs all .* use precision=bf16 or fp32"),
        ({"micro_batch_size": 2}, "micro_batch_size needs all .* use micro_batch_size=null"),
    ],
)
def test_what_needs_all_gradients_is_refused(more: dict, message: str, stage, tmp_path) -> None:
    with pytest.raises(SettingError, match=f"train.*optimizer_in_backward: {message}"):
        parse(RunConfig, settings_of(stage, tmp_path / "run", **more))


def test_galore_refuses_to_project_nothing() -> None:
    objective = build(NextToken(), tiny.model())
    with pytest.raises(SettingError, match=r"optimizer\.rank: 128 leaves nothing .* at most 16"):
        GaLore().build(objective)
    with pytest.raises(SettingError, match="rank: 16 leaves nothing"):
        GaLore(rank=16).build(objective)
    assert GaLore(rank=15).build(objective)
