"""What a plan says of memory, next to the peak of PyTorch's CPU allocator in a real step.

    python bench/memory.py [name ...]

Each case trains two steps of 2 micro-batches (or 1) in fp32 under PyTorch's profiler, which records
every allocation. The peak of the second step, when the states of the optimizer are there, is
compared with the plan's total. Exits with 1 if one is off by more than 1 % (GaLore: 3 %).
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from culm.batch import Batch, counts_of
from culm.config import parse
from culm.model.transformer import TransformerConfig
from culm.objective.next_token import NextToken, NextTokenObjective
from culm.optim.schedule import Constant
from culm.parallel.parallelize import parallelize
from culm.plan.needs import Step, needs_of
from culm.run.train_settings import TrainConfig
from culm.train.trainer import Trainer
from culm.train.update import Update, UpdateInBackward

LIMIT = 0.01
SVD = 0.03  # for GaLore where updates are the peak: the workspace of LAPACK's SVD is not planned
GIVEN = {"steps": 2, "batch_size": 16, "micro_batch_size": 8, "optimizer": "adamw"}
DENSE = {
    "vocabulary": 512, "width": 128, "layers": 4, "context": 256,
    "attention": {"kind": "gqa", "heads": 4, "kv_heads": 2, "qk_norm": "head"},
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "dense": DENSE,
    "wide head": DENSE | {"vocabulary": 16384, "layers": 2},
    "moe": DENSE | {"mlp": {"kind": "moe", "experts": 4, "top_k": 2, "hidden": 128}},
    "mla": DENSE
    | {"attention": {"kind": "mla", "heads": 4, "rank": 64, "head_dim": 32, "rope_dim": 16,
                     "value_dim": 32}},
    "short": DENSE | {"width": 512, "layers": 2, "context": 32},
    "head": DENSE | {"vocabulary": 24576, "layers": 1},
    "window": DENSE | {"attention": {"kind": "gqa", "heads": 4, "window": 64}},
}  # fmt: skip
EVERY_STEP = {"refresh_steps": 1}  # a plan counts the steps that choose the projection
CASES = {
    **{name: (name, {}) for name in ("dense", "moe", "mla", "window", "wide head")},
    "one micro-batch": ("dense", {"micro_batch_size": 16}),
    "selective": ("dense", {"activation_checkpointing": "selective"}),
    "full": ("dense", {"activation_checkpointing": "full"}),
    "moe full": ("moe", {"activation_checkpointing": "full"}),
    "mla selective": ("mla", {"activation_checkpointing": "selective"}),
    "lora": ("dense", {"adapter": {"rank": 8}}),
    "lora full": ("dense", {"adapter": {"rank": 8}, "activation_checkpointing": "full"}),
    **{
        kind: ("dense", {"optimizer": {"kind": kind}})
        for kind in ("adafactor", "adamw8bit", "muon", "lion", "sgd", "schedule_free")
    },
    **{
        f"{kind}, short rows": ("short", {"optimizer": {"kind": kind} | more, "batch_size": 1})
        for kind, more in {
            "adamw": {},
            "adafactor": {},
            "adamw8bit": {},
            "muon": {},
            "lion": {},
            "galore": EVERY_STEP,
            "galore8bit": EVERY_STEP,
        }.items()
    },
    "galore": ("dense", {"optimizer": {"kind": "galore", "rank": 32}}),
    "many short rows": ("short", {"batch_size": 256, "micro_batch_size": 256}),
    "in backward": ("dense", {"optimizer_in_backward": True, "clip": None, "batch_size": 1}),
    "head": ("head", {}),
    "full, short rows": ("short", {"activation_checkpointing": "full", "batch_size": 1}),
    "bf16 weights": ("dense", {"weights": "bf16"}),
}


@dataclass
class Fixed:
    """The same rows in every step."""

    batches: list[Batch]

    def step(self, number: int) -> list[Batch]:
        return self.batches


def objective_of(model: dict[str, Any], train: TrainConfig, device: str) -> NextTokenObjective:
    built = parse(TransformerConfig, model).build(device=device)
    if train.adapter is not None:
        train.adapter.apply(built, 0)
    if train.weights == "bf16":
        for parameter in built.parameters():
            parameter.data = parameter.data.bfloat16()
    return NextTokenObjective(NextToken(), built.train())


def batch(rows: int, context: int, vocabulary: int) -> Batch:
    shape = rows, context
    tokens = torch.randint(0, vocabulary, shape)
    positions = torch.arange(context).repeat(rows, 1)
    documents = torch.zeros(shape, dtype=torch.int32)
    return Batch(
        tokens, tokens.clone(), positions, documents, torch.full((rows,), context),
        counts=counts_of(tokens),
    )  # fmt: skip


def planned(model: dict[str, Any], train: TrainConfig) -> int:
    objective = objective_of(model, train, "meta")
    parallelize(objective, activation_checkpointing=train.activation_checkpointing)
    within = train.optimizer_in_backward
    step = Step(model["context"], train.batch_size, train.at_once, in_backward=within)
    return needs_of(objective, train.optimizer, step).memory.total


def measured(model: dict[str, Any], train: TrainConfig) -> int:
    """The peak of the allocator in the second step."""
    torch.manual_seed(0)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        objective = objective_of(model, train, "cpu")
        wrapped = parallelize(objective, activation_checkpointing=train.activation_checkpointing)
        rows, count = (
            min(train.at_once, train.batch_size),
            max(1, train.batch_size // train.at_once),
        )
        parts = [batch(rows, model["context"], model["vocabulary"]) for _ in range(count)]
        optimizer = train.optimizer.build(objective)
        within = train.optimizer_in_backward
        update = UpdateInBackward(wrapped, optimizer) if within else Update(wrapped, optimizer)
        trainer = Trainer(update, Constant())
        trainer.fit(Fixed(parts), 1)  # type: ignore[arg-type]
        second = time.time_ns()
        trainer.fit(Fixed(parts), 2, 1)  # type: ignore[arg-type]
    events = [
        event
        for event in profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
        if event.name() == "[memory]"
    ]
    events.sort(key=lambda event: event.start_ns())
    held = accumulate(event.nbytes() for event in events)
    return max(now for now, event in zip(held, events, strict=True) if event.start_ns() >= second)


def limit_of(name: str) -> float:
    """What the plan of a case may be off by."""
    return SVD if name.startswith("galore") and name.endswith("short rows") else LIMIT


def main() -> None:
    torch.set_num_threads(1)
    worst = 0.0
    print("| case | plan, MB | allocator, MB | off by |\n|---|--:|--:|--:|")
    for name in sys.argv[1:] or CASES:
        model, settings = CASES[name]
        train = parse(TrainConfig, GIVEN | settings)
        plan, real = planned(MODELS[model], train), measured(MODELS[model], train)
        worst = max(worst, abs(plan / real - 1) / limit_of(name))
        print(
            f"| {name} | {plan / 1e6:.2f} | {real / 1e6:.2f} | {plan / real - 1:+.2%} |", flush=True
        )
    sys.exit(worst > 1)


if __name__ == "__main__":
    main()
