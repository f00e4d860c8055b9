"""Reinforcement learning on countdown, from a small model that Culm trained: a table.

    python bench/countdown.py

A model of about 0.8 million parameters learns expressions of three numbers by fine-tuning; GRPO
goes on from there, with the score of the task as the reward. The control gets the same rewards in
random order. pass@1: greedy, on 1,000 questions whose numbers and value are in no training, with
its 95 % interval.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from learning_rl import trained

from culm.files import read_json, read_lines

TASK = {"kind": "countdown"}
SFT_STEPS, STEPS, ROWS = 800, 60, 256


def main() -> None:
    """Run what is not there yet, and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--seeds", type=int, default=1)
    arguments.add_argument("--folder", type=Path, default=Path("runs/countdown"))
    given = arguments.parse_args()
    print("| seed | model | pass@1 | mean reward of the first and the last ten steps |")
    print("|--:|---|--:|--:|")
    for seed in range(given.seeds):
        folder = given.folder / str(seed)
        start = trained(fine_tuning(folder / "sft", seed))
        show(seed, "fine-tuned", start)
        for name in ("grpo", "shuffled"):
            run = trained(reinforcement(folder / name, seed, start, name == "shuffled"))
            lines = read_lines(run / "metrics.jsonl")
            first, last = (
                sum(line["reward"] for line in of) / 10 for of in (lines[:10], lines[-10:])
            )
            show(seed, name, run, f"{first:.2f}, {last:.2f}")


def show(seed: int, name: str, run: Path, rewards: str = "") -> None:
    found = read_json(run / "results.json")["scores"]["all"]
    value, low, high = (100 * found[key] for key in ("value", "low", "high"))
    print(f"| {seed} | {name} | {value:.1f} % ({low:.1f} - {high:.1f}) | {rewards} |", flush=True)


def evaluation() -> dict[str, Any]:
    return {"measures": {"scores": {"tasks": [TASK], "questions": 1000, "max_tokens": 20}}}


def fine_tuning(folder: Path, seed: int) -> dict[str, Any]:
    return {
        "folder": str(folder), "seed": seed, "device": "cpu",
        "tokenizer": {"kind": "bytes", "specials": True},
        "model": {
            "vocabulary": 262, "width": 128, "layers": 4, "context": 64,
            "attention": {"kind": "gqa", "heads": 4, "qk_norm": "head"},
        },
        "data": {"tasks": [TASK], "format": "chat", "questions": 60_000, "held_out": 0},
        "train": {"steps": SFT_STEPS, "batch_size": 64, "context": 64,
                  "optimizer": {"kind": "muon", "rate": 5e-3}},
        "eval": evaluation(),
    }  # fmt: skip


def reinforcement(folder: Path, seed: int, start: Path, shuffled: bool) -> dict[str, Any]:
    return {
        "folder": str(folder), "seed": seed, "device": "cpu", "start": str(start),
        "data": {"tasks": [TASK], "format": "chat", "held_out": 0},
        "train": {
            "steps": STEPS, "batch_size": ROWS, "micro_batch_size": 64,
            "objective": {"kind": "grpo", "average": "tokens"},
            "rollout": {"group": 8, "max_tokens": 20, "shuffled": shuffled},
            "schedule": {"kind": "cosine", "warmup": 0.1, "final": 0.1},
            "optimizer": {"kind": "adamw", "rate": 4e-4, "betas": [0.95, 0.99], "eps": 1e-3,
                          "weight_decay": 0.0},
        },
        "eval": evaluation(),
    }  # fmt: skip


if __name__ == "__main__":
    main()
