"""Every optimizer on the demo at a few rates: loss, memory of its states, time of an update.

    python bench/optimizers.py [--steps 150] [--kinds adamw lion ...]

A table of the best rate of each kind: held-out loss in nats per byte, how much more that is than
AdamW's, bytes of states per trained weight as the run has them and as `culm plan` says, and the
time of an update, without forward and backward. All runs have the same seed and data.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, get_args

import torch
from learning_rl import run_to_end

from culm.files import read_json
from culm.optim import Optimizer
from culm.optim.optimizer import OptimizerConfig
from culm.plan.needs import Step, needs_of
from culm.plan.scaling import comparable
from culm.run.assemble import assemble
from culm.run.settings import RunConfig, read_run

KINDS = {kind.model_fields["kind"].default: kind for kind in get_args(get_args(Optimizer)[0])}
RATES: dict[str, tuple[float, ...]] = {
    "adamw": (2e-3, 5e-3), "muon": (5e-3, 1e-2), "adamw8bit": (2e-3, 5e-3),
    "galore": (5e-3, 1e-2), "galore8bit": (5e-3, 1e-2), "adafactor": (3e-2, 1e-1),
    "lion": (3e-4, 1e-3), "sgd": (0.3, 1.0), "schedule_free": (5e-3, 1e-2),
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "galore": {"rank": 32, "scale": 1.0}, "galore8bit": {"rank": 32, "scale": 1.0},
    "lion": {"weight_decay": 0.3},
}  # fmt: skip


def main() -> None:
    """Run what is not there yet, and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--steps", type=int, default=150)
    arguments.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    arguments.add_argument("--folder", type=Path, default=Path("runs/optimizers"))
    given = arguments.parse_args()
    columns = ("optimizer", "best rate", "loss", "to AdamW", "bytes a weight", "planned", "ms")
    print(f"| {' | '.join(columns)} |\n|---{'|--:' * 6}|")
    reference: float | None = None
    for kind in given.kinds:
        losses = {rate: trained(given.folder, kind, rate, given.steps) for rate in RATES[kind]}
        rate = min(losses, key=lambda one: comparable(losses[one]))
        reference = losses[rate] if kind == "adamw" else reference
        ratio = "" if reference is None else f"{losses[rate] / reference:.3f}"
        held, planned, milliseconds = measured(settings(given.folder, kind, rate, given.steps))
        print(
            f"| {kind} | {rate:g} | {losses[rate]:.3f} | {ratio} | {held:.2f} | {planned:.2f} | "
            f"{milliseconds:.1f} |", flush=True,
        )  # fmt: skip


def settings(folder: Path, kind: str, rate: float, steps: int) -> RunConfig:
    optimizer = {"kind": kind, "rate": rate, **SETTINGS.get(kind, {})}
    schedule = {"kind": "constant" if kind == "schedule_free" else "wsd", "warmup": 0.05}
    if schedule["kind"] == "wsd":
        schedule["decay"] = 0.3
    given = {"train.optimizer": optimizer, "train.schedule": schedule, "train.steps": steps}
    given |= {"folder": str(folder / f"{kind}-{rate:g}-{steps}"), "device": "cpu"}
    given["eval.measures"] = {"held_out": {"tokens": 50_000}}
    given |= {"eval.every_steps": None}
    return read_run("demo", [f"{name}={json.dumps(value)}" for name, value in given.items()])[0]


def trained(folder: Path, kind: str, rate: float, steps: int) -> float:
    """Held-out loss, nats per byte."""
    config = settings(folder, kind, rate, steps)
    if not (Path(config.folder) / "results.json").exists():
        run_to_end(config)
    return float(read_json(Path(config.folder) / "results.json")["loss"])


def measured(config: RunConfig) -> tuple[float, float, float]:
    """Bytes of states per trained weight, the planned ones, and milliseconds of an update."""
    run = assemble(config, Path(config.folder), torch.device("cpu"))
    rule: OptimizerConfig = config.train.optimizer
    optimizer, times = rule.build(run.objective), list[float]()
    learned = [p for p in run.objective.parameters() if p.requires_grad]
    for _ in range(10):
        for parameter in learned:
            parameter.grad = torch.randn_like(parameter)
        began = time.perf_counter()
        optimizer.step()
        times.append(time.perf_counter() - began)
    held = sum(value.nbytes for state in optimizer.state.values() for value in state.values())
    hollow, weights = run.objective.to("meta"), sum(p.numel() for p in learned)
    hollow.model.tie()
    planned = needs_of(hollow, rule, Step(64, 2, 1)).memory.optimizer
    return held / weights, planned / weights, 1e3 * sorted(times)[len(times) // 2]


if __name__ == "__main__":
    main()
