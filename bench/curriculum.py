"""Tokens until a loss is reached, with curricula and without.

    python bench/curriculum.py [seed ...]

A mixture of two tasks: copy 4 letters, and copy 16. The same tiny model learns both from the start,
in batches of equal size. Each line is the mean over seeds of the tokens until the held-out loss is
below the target, and their ratio to those of a uniform order.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from learning_rl import run_to_end

from culm.config import parse
from culm.files import read_lines
from culm.run.settings import RunConfig

STEPS, EVERY, CURRICULUM = 170, 5, 60
TARGETS = (0.5, 0.1)  # nats per learned token; a guess among eight letters costs 2.08
LETTERS = "abcdefgh"
ORDERS: dict[str, dict[str, Any] | None] = {
    "uniform": None,
    "root": {"strategy": {"kind": "competence", "initial": 0.1}},
    "baby steps": {"strategy": {"kind": "baby_steps", "buckets": 3}},
    "root, hardest first": {
        "strategy": {"kind": "competence", "initial": 0.1},
        "hardest_first": True,
    },
}


def write_tasks(path: Path, seed: int, records: int = 6000) -> None:
    """Half of the letters to copy are in short texts."""
    chance = random.Random(seed)
    with path.open("w") as file:
        for number in range(records):
            text = "".join(chance.choices(LETTERS, k=16 if number % 5 == 0 else 4))
            file.write(json.dumps({"prompt": text, "completion": text}) + "\n")


def run(folder: Path, data: Path, curriculum: dict[str, Any] | None, seed: int) -> list[float]:
    """Tokens until each target; infinite if it is not reached."""
    settings: dict[str, Any] = {
        "folder": str(folder), "seed": seed, "device": "cpu",
        "tokenizer": {"kind": "bytes", "specials": True},
        "model": {
            "vocabulary": 262, "width": 64, "layers": 2, "context": 64,
            "attention": {"kind": "gqa", "heads": 4, "qk_norm": "head"},
        },
        "data": {"path": str(data), "format": "chat", "packing": "best_fit"},
        "train": {
            "steps": STEPS, "batch_size": 16, "precision": "fp32", "schedule": "constant",
            "optimizer": {"kind": "adamw", "rate": 3e-3, "weight_decay": 0.0},
        },
        "eval": {"every_steps": EVERY, "measures": {"held_out": {"tokens": 2000}}},
    }  # fmt: skip
    if curriculum is not None:
        settings["data"]["curriculum"] = {"steps": CURRICULUM, **curriculum}
    run_to_end(parse(RunConfig, settings))
    tokens = {line["step"]: line["tokens"] for line in read_lines(folder / "metrics.jsonl")}
    measured = read_lines(folder / "eval.jsonl")[1:]
    return [
        next((tokens[line["step"]] for line in measured if line["loss"] < target), float("inf"))
        for target in TARGETS
    ]


def main(*seeds: int) -> None:
    found: dict[str, list[list[float]]] = {name: [] for name in ORDERS}
    for seed in seeds or (0, 1, 2):
        with TemporaryDirectory() as temporary:
            data = Path(temporary) / "tasks.jsonl"
            write_tasks(data, seed)
            for name, curriculum in ORDERS.items():
                found[name].append(run(Path(temporary) / name, data, curriculum, seed))
                print(seed, name, found[name][-1], flush=True)
    print("order                " + "".join(f"{f'tokens to {t}':>18}{'ratio':>8}" for t in TARGETS))
    uniform = [statistics.fmean(one) for one in zip(*found["uniform"], strict=True)]
    for name, runs in found.items():
        means = [statistics.fmean(one) for one in zip(*runs, strict=True)]
        cells = [f"{m:18,.0f}{m / u:8.2f}" for m, u in zip(means, uniform, strict=True)]
        print(f"{name:21}" + "".join(cells))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
