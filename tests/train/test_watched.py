"""What a run says of its speed and its updates, against numbers that are worked out by hand."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from learning import Given, Recorder, build

from culm.batch import Batch
from culm.config import parse
from culm.data.loader import Loader
from culm.device import matmul_rate
from culm.files import read_lines
from culm.objective.next_token import NextToken
from culm.optim.adamw import AdamW
from culm.optim.schedule import Constant
from culm.parallel.parallelize import Parallel, parallelize
from culm.plan.layout import Layout
from culm.plan.needs import Step
from culm.plan.target import target_called
from culm.plan.utilisation import flops_per_token, on_meta, peak_rate
from culm.run.settings import RunConfig
from culm.run.train import train
from culm.train.speed import Speed
from culm.train.trainer import Timing, Trainer
from culm.train.update import Update

CPU = torch.device("cpu")


def test_speed_is_a_share_of_the_peak() -> None:
    """100 tokens in 2 seconds, 30 FLOPs each, on 2 devices of 1,000 FLOP/s."""
    found = Speed(CPU, 30.0, 2000.0)(Timing(1, 100, 0.5, 2.0))
    assert found["tokens_per_second"] == 50
    assert found["waiting"] == 0.25
    assert found["mfu"] == 50 * 30 / 2000
    assert found["peak_bytes"] > 1e6
    assert "mfu" not in Speed(CPU)(Timing(1, 100, 0.5, 2.0))


def test_flops_are_those_of_the_matmuls() -> None:
    """Two for each multiply-add, three times for forward and backward; none are counted again."""
    objective = build(NextToken(), tiny.model())
    width, context, vocabulary, layers = 16, 12, 31, 2
    projections = sum(
        part.weight.numel() for part in objective.model.blocks.modules() if hasattr(part, "matrix")
    )
    # Scores and values: every query with every key, as the attention of a CPU computes them.
    attention = layers * 2 * width * context
    logits = width * vocabulary
    shape = Step(context, 8, 8, layout=Layout())
    plain = flops_per_token(on_meta(objective), shape)
    expected = 2 * 3 * (projections + attention + logits)
    assert plain == pytest.approx(expected, rel=0.05)
    hollow = on_meta(objective)
    parallelize(objective, activation_checkpointing="full")
    assert flops_per_token(hollow, shape) == plain
    assert not any(parameter.is_meta for parameter in objective.parameters())


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"), ("NVIDIA L4", "l4"), ("NVIDIA H200", "h200"),
        ("AMD Instinct MI300X", "mi300x"), ("NVIDIA H100 PCIe", None), ("NVIDIA L40", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("NVIDIA GeForce RTX 3090 Ti", None),
    ],
)  # fmt: skip
def test_only_the_very_device_has_the_peak_of_its_datasheet(name: str, known: str | None) -> None:
    found = target_called(name)
    assert (found and found.name) == known


def test_the_peak_of_a_cpu_is_measured() -> None:
    rate, source = peak_rate(CPU, "fp32")
    assert rate == max(matmul_rate(CPU, one) for one in ("fp32", "bf16")) > 1e8
    assert source == "a large matmul here"


def test_update_ratio_is_the_move_by_the_weights() -> None:
    """Every second step, and the same update as in a step that is not measured."""
    runs = []
    for every in (None, 2):
        objective = build(NextToken(), tiny.model())
        recorder, before, ratios = Recorder(), [], []

        def listen(event, objective=objective, recorder=recorder, before=before, ratios=ratios):
            after = torch.cat([p.detach().flatten().clone() for p in objective.parameters()])
            if before:
                ratios.append(float((after - before[-1]).norm() / before[-1].norm()))
            before.append(after)
            recorder(event)

        update = Update(Parallel(objective), AdamW(rate=0.01).build(objective), ratio_every=every)
        Trainer(update, Constant(), listener=listen).fit(Given([tiny.rows()]), 4)
        runs.append((recorder.steps, before, ratios))
    plain, measured = runs
    assert torch.equal(plain[1][-1], measured[1][-1])
    assert not any("update_ratio" in step.metrics for step in plain[0])
    found = [step.metrics.get("update_ratio") for step in measured[0]]
    assert [value is None for value in found] == [True, False, True, False]
    assert found[1] == pytest.approx(measured[2][0], rel=1e-4)
    assert found[3] == pytest.approx(measured[2][2], rel=1e-4)


def test_every_line_of_a_run_has_them(stage: Callable[..., dict], tmp_path: Path) -> None:
    settings = {**stage("dpo", steps=4), "folder": str(tmp_path / "run")}
    train(parse(RunConfig, settings))
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    for line in lines:
        assert {"mfu", "tokens_per_second", "waiting", "peak_bytes"} <= line.keys()
        assert 0 < line["mfu"] < 2  # the peak is measured, and the machine may be busy then
        assert 0 <= line["waiting"] < 1
    assert ["update_ratio" in line for line in lines] == [False, True] * 2


def test_waiting_is_the_share_of_a_step_in_which_it_waits_for_data(
    stage: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run whose third step takes half a second longer to read."""
    read = Loader.step

    def slowly(self: Loader, number: int) -> list[Batch]:
        time.sleep(0.5 if number == 2 else 0)
        return read(self, number)

    monkeypatch.setattr(Loader, "step", slowly)
    train(parse(RunConfig, {**stage("sft", steps=4), "folder": str(tmp_path / "run")}))
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    waited = [line["waiting"] * line["seconds"] for line in lines]
    assert 0.5 <= waited[2] < lines[2]["seconds"]
    assert max(waited[0], waited[1], waited[3]) < 0.4
