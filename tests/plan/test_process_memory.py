"""The memory that a plan says a process will take, against that of a process that trains."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from learning import build
from pydantic import TypeAdapter
from stages import STAGES

from culm.config import parse
from culm.malloc import heap_end
from culm.model.attention.gqa import GQA
from culm.model.transformer import TransformerConfig
from culm.objective.next_token import NextToken
from culm.optim import Optimizer
from culm.optim.adamw import AdamW
from culm.plan import process_memory
from culm.plan.needs import Step
from culm.plan.process_memory import Unfilled, process_bytes
from culm.run.settings import RunConfig
from culm.verbs.plan import show_plan

KINDS = [one.model_fields["kind"].default for one in get_args(get_args(Optimizer)[0])]
glibc = pytest.mark.skipif(heap_end() is None, reason="the heap of glibc")

RUN = """
import sys, torch
from culm.adapt.lora import LoRA
from culm.batch import IGNORED
from culm.compose import compose
from culm.config import parse
from culm.model.context import Context
from culm.model.transformer import TransformerConfig
from culm.objective.next_token import NextToken, NextTokenObjective
from culm.optim.adamw import AdamW
from culm.parallel.checkpointing import checkpoint_blocks
from culm.plan.dry_run import ONES
from culm.plan.needs import Step
from culm.plan.process_memory import process_bytes
from culm.plan.speed import training_rate
from culm.malloc import keep_freed_memory
from culm.train.memory import peak_bytes, reset_peak

what, name, rows, options = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4].split()
torch.set_num_threads(1)
config = parse(TransformerConfig, compose(name, "model").values)
step = Step(256, batch_size=2 * rows if "halves" in options else rows, at_once=rows)

def objective(device):
    model = config.build(0, device=device)
    model.set_backend("blocks")
    if "lora" in options:
        LoRA(rank=8).apply(model, 0)
        model.to(device)
    made = NextTokenObjective(NextToken(), model)
    if "checkpointing" in options:
        checkpoint_blocks(made)
    return made

def batch(rows):
    made = step.batch(rows).to("meta")
    ids = torch.randint(config.vocabulary, (rows, 256))
    targets = ids.masked_fill(torch.rand(ids.shape) < float(torch.rand(()) / 4), IGNORED)
    places = torch.arange(256).expand(rows, -1)
    return type(made)(ids, targets, places, torch.zeros_like(ids, dtype=torch.int32))

training_rate(config, torch.device("cpu"), "fp32", 256)
if what == "plan":
    print(process_bytes(objective("meta"), AdamW(), step, evaluated=16))
    sys.exit()
keep_freed_memory()
reset_peak()
trained = objective("cpu")
optimizer = AdamW().build(trained)
for _ in range(6):
    for _ in range(step.micro_batches):
        trained(batch(rows)).mean(ONES).backward()
    optimizer.step()
    optimizer.zero_grad()
    with torch.inference_mode():
        for _ in range(4):
            held = batch(16)
            context = Context(held.positions, held.documents)
            trained.model.logprobs(held.tokens, held.targets, context)
print(peak_bytes())
"""


def peak_of(*arguments: str) -> int:
    command = [sys.executable, "-c", RUN, *arguments]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@glibc
@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "rows", "options"),
    [
        ("nano", "8", ""),
        ("nano", "16", "checkpointing"),
        ("nano", "8", "lora"),
        ("tiny", "4", "halves"),
    ],
)
def test_a_process_takes_what_was_planned(model: str, rows: str, options: str) -> None:
    planned, measured = (peak_of(what, model, rows, options) for what in ("plan", "train"))
    assert planned == pytest.approx(measured, rel=0.1)


def test_nothing_is_computed() -> None:
    """Shapes are right, also of views and of what is written in place; values are not."""
    x, w = torch.ones(4, 8, requires_grad=True), torch.ones(8, 8, requires_grad=True)
    with Unfilled():
        y = (x @ w).view(2, 16)
        y.add_(torch.arange(16)).sum().backward()
        kept = torch.ones(6).nonzero()
        values, places = y.topk(3)
    assert y.shape == (2, 16)
    assert (w.grad.shape, w.grad.device.type) == ((8, 8), "cpu")
    assert kept.shape == (6, 1)
    assert (values.shape, places.dtype) == ((2, 3), torch.int64)
    assert torch.equal(w, torch.ones(8, 8))


@glibc
@pytest.mark.parametrize("kind", KINDS)
def test_the_process_of_every_optimizer_is_planned(kind: str) -> None:
    """Also of those that read a number, as GaLore the count of its steps."""
    small = {"rank": 8} if kind.startswith("galore") else {}
    optimizer = TypeAdapter(Optimizer).validate_python({"kind": kind, **small})
    config = TransformerConfig(vocabulary=64, width=32, layers=1, attention=(GQA(heads=2),))
    objective = build(NextToken(), config.build(device="meta"))
    assert process_bytes(objective, optimizer, Step(64, 4, 4), evaluated=4)


@glibc
def test_nothing_is_changed_and_nothing_kept() -> None:
    config = TransformerConfig(vocabulary=64, width=32, layers=2, attention=(GQA(heads=2),))
    objective = build(NextToken(), config.build(device="meta"))
    found = [
        process_bytes(objective, AdamW(), Step(64, batch_size=rows, at_once=rows), evaluated=4)
        for rows in (8, 256)
    ]
    assert found[1] > found[0] + 20e6
    assert all(parameter.is_meta for parameter in objective.parameters())


def test_another_c_library_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_memory, "heap_end", lambda: None)
    config = TransformerConfig(vocabulary=64, width=32, layers=1, attention=(GQA(heads=2),))
    objective = build(NextToken(), config.build(device="meta"))
    assert process_bytes(objective, AdamW(), Step(64, 2, 2), evaluated=4) is None


@glibc
@pytest.mark.parametrize("adapter", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize(
    "name",
    [
        name if name in ("sft", "ppo") else pytest.param(name, marks=pytest.mark.slow)
        for name in STAGES
    ],
)
def test_the_process_of_every_stage_is_planned(
    name: str,
    adapter: bool,
    stage: Callable[..., dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    settings = {**stage(name, adapter=adapter), "folder": str(tmp_path / "run")}
    show_plan(parse(RunConfig, settings), {})
    assert "Python, its libraries and gaps between buffers" in capsys.readouterr().out
