"""fp16: the loss scale is that of torch's scaler, overflows change nothing, resume is exact."""

import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from learning import Given, Recorder, build
from stages import untimed, weights_in

from culm.config import parse
from culm.files import read_lines
from culm.objective.next_token import NextToken
from culm.optim.adamw import AdamW
from culm.optim.muon import Muon
from culm.optim.schedule import Constant
from culm.parallel.parallelize import Parallel
from culm.run.settings import RunConfig, read_run
from culm.run.train import train
from culm.train import loss_scale
from culm.train.judge import TrainingError
from culm.train.loss_scale import LossScale
from culm.train.trainer import Trainer
from culm.train.update import Update

sys.path.append(str(Path(__file__).parents[1] / "parallel"))
from test_ranks import assert_same, on_two_ranks

FACTS = {"loss_scale", "overflows"}


def test_the_scale_moves_as_that_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Overflows in some steps, with the scale growing after four good ones."""
    monkeypatch.setattr(loss_scale, "INTERVAL", 4)
    ours, theirs = LossScale(), torch.amp.GradScaler("cpu", growth_interval=4)
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    for step in range(40):
        bad = step % 7 == 3 or step in (11, 12)
        theirs.scale(weight.sum()).backward()
        weight.grad.fill_(math.inf if bad else 1.0)
        theirs.step(optimizer)
        theirs.update()
        assert (ours.judge(step, math.inf if bad else 1.0) is not None) == bad
        assert ours.value == theirs.get_scale()
    again = LossScale()
    again.restore(ours.state())
    assert (again.value, again.overflows, again._row) == (ours.value, 8, ours._row)
    again.restore({})
    assert (again.value, again.overflows) == (2**16, 0)


def test_no_scale_helps_where_nothing_is_finite() -> None:
    scale = LossScale()
    for step in range(1, 31):
        assert scale.judge(step, math.nan)
    with pytest.raises(TrainingError, match="step 31: gradients are not finite in fp16 with any"):
        scale.judge(31, math.nan)


@pytest.mark.parametrize("by", ["model", "group"])
def test_unscaled_before_they_are_clipped(by: str) -> None:
    """In fp32 a power of two changes no bit: the same losses, norms and weights."""
    runs = []
    for scale in (None, LossScale()):
        objective, recorder = build(NextToken(), tiny.model()), Recorder()
        optimizer = Muon(rate=0.01).build(objective)
        update = Update(Parallel(objective), optimizer, clip=0.5, clip_by=by, loss_scale=scale)
        trainer = Trainer(update, Constant(), listener=recorder)
        trainer.fit(Given([tiny.rows(), tiny.rows()]), 3)
        weights = [p.detach() for p in objective.parameters()]
        runs.append((weights, [(s.loss, s.grad_norm) for s in recorder.steps], recorder.steps))
    (plain, facts, steps), (scaled, others, scaled_steps) = runs
    assert all(torch.equal(one, other) for one, other in zip(plain, scaled, strict=True))
    assert facts == others
    assert scaled_steps[-1].metrics.keys() - steps[-1].metrics.keys() == FACTS


def test_a_step_that_overflows_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A factor of the loss that fp16 cannot hold, in step 2."""
    objective, recorder = build(NextToken(), tiny.model()), Recorder()
    objective.model.dtype = torch.float16
    kept = []

    def listen(event) -> None:
        recorder(event)
        kept.append([p.detach().clone() for p in objective.parameters()])

    gradients = Parallel.gradients

    def planted(self, batches, counts, scale):
        return gradients(self, batches, counts, scale * (1e9 if len(kept) == 1 else 1))

    monkeypatch.setattr(Parallel, "gradients", planted)
    scale = LossScale()
    scale.value = 256.0
    update = Update(Parallel(objective), AdamW(rate=0.01).build(objective), loss_scale=scale)
    Trainer(update, Constant(), listener=listen).fit(Given([tiny.rows()]), 3)
    one, two, three = recorder.steps
    assert (one.skipped, three.skipped) == (None, None)
    assert two.skipped == "gradients overflowed in fp16 with a loss scale of 256"
    assert [step.metrics["overflows"] for step in recorder.steps] == [0, 1, 1]
    assert [step.metrics["loss_scale"] for step in recorder.steps] == [256, 128, 128]
    assert all(torch.equal(a, b) for a, b in zip(kept[0], kept[1], strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(kept[1], kept[2], strict=True))
    assert three.loss == pytest.approx(two.loss)  # of the same weights


def settings_of(stage: Callable[..., dict], folder: Path, **more: object) -> dict:
    settings = stage("pretrain", steps=6, checkpoint={"every_steps": 3}, **more)
    return {**settings, "folder": str(folder)}


@pytest.mark.slow
def test_a_run_follows_fp32_and_resumes_to_the_bit(
    stage: Callable[..., dict], tmp_path: Path
) -> None:
    ends = {"fp32": (6,), "fp16": (6,), "again": (3, 6)}
    for name, steps in ends.items():
        for step in steps:
            precision = "fp32" if name == "fp32" else "fp16"
            settings = settings_of(stage, tmp_path / name, precision=precision)
            settings["train"]["steps"] = step
            train(parse(RunConfig, settings))
    exact, half, again = (
        [untimed(line) for line in read_lines(tmp_path / name / "metrics.jsonl")] for name in ends
    )
    assert half == again
    assert half[0]["loss_scale"] == 2**16 / 2 ** half[0]["overflows"]
    learned = [line for line in half if "skipped" not in line]
    assert len(learned) >= 4
    for one, other in zip(learned, exact, strict=False):
        assert one["loss"] == pytest.approx(other["loss"], rel=0.01)
    weights, others = weights_in(tmp_path / "fp16"), weights_in(tmp_path / "again")
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())
    # Another precision may go on, without the scale.
    settings = settings_of(stage, tmp_path / "again", precision="fp32")
    settings["train"]["steps"] = 7
    train(parse(RunConfig, settings))
    assert not FACTS & read_lines(tmp_path / "again" / "metrics.jsonl")[-1].keys()


@pytest.mark.slow
def test_two_ranks_follow_one(stage: Callable[..., dict], tmp_path: Path) -> None:
    """Copies and shards (FSDP2), with a scale that is too high at first."""
    file = tmp_path / "run.yaml"
    settings = settings_of(stage, tmp_path / "one", precision="fp16", micro_batch_size=1)
    settings["train"]["optimizer"] = {"kind": "adamw", "rate": 1e-3}
    file.write_text(yaml.safe_dump(settings))
    layouts = ("ddp", "fsdp")
    on_two_ranks(*(f"{file},parallel.data={one},folder={tmp_path}/{one}" for one in layouts))
    train(read_run(str(file))[0])
    for layout in layouts:
        assert_same(tmp_path / "one", tmp_path / layout)
