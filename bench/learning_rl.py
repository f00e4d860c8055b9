"""Whether each policy gradient learns two toy tasks, next to controls that must not: tables.

    python bench/learning_rl.py [letters|addition] --seeds 3

letters: 16 tokens, and the share that is the letter a is the reward; a model that knows nothing
learns it. Measured: that share, as the mean of the last five of 60 updates, for PPO of 100.

addition: `12+34`, right or wrong. Fine-tuning reaches a part of the questions first; measured is
exact match (greedy) on 500 questions that no training asks, and the distance from the start.

Controls have the same settings with a reward of zero, and with its sign flipped. PPO and the
variants of GRPO have their usual costs of distance, where these do not forbid the task: all that
letters reward is away from a random start, so there the cost is at most 0.002.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

from culm.config import parse
from culm.files import read_json, read_lines
from culm.objective.grpo import GRPO, VARIANTS
from culm.objective.ppo import PPO
from culm.run.settings import RunConfig
from culm.run.train import train

WEIGHTS = {"reward": 1.0, "zero": 0.0, "flipped": -1.0}
METHODS: dict[str, dict[str, Any]] = {
    "ppo": {"kind": "ppo"},
    **{name: {"kind": "grpo", "variant": name} for name in VARIANTS},
}
Found = dict[str, float]


def share_of_a(completion: str) -> float:
    """The reward of the letters, which runs read from this file."""
    return completion[:16].count("a") / 16


def main() -> None:
    """Run what is not there yet, and print a table for each task."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("task", nargs="?", default="both", choices=[*TASKS, "both"])
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    arguments.add_argument("--rewards", nargs="*", default=list(WEIGHTS), choices=list(WEIGHTS))
    arguments.add_argument("--folder", type=Path, default=Path("runs/learning-rl"))
    given = arguments.parse_args()
    for task in TASKS if given.task == "both" else (given.task,):
        table: dict[str, dict[str, list[Found]]] = {}
        for method in given.methods:
            for reward in given.rewards:
                runs = [
                    TASKS[task](given.folder / task, method, reward, seed)
                    for seed in range(given.seeds)
                ]
                table.setdefault(method, {})[reward] = runs
                print(task, method, reward, json.dumps(runs), flush=True)
        show(table)


def show(table: dict[str, dict[str, list[Found]]]) -> None:
    """Means, and in brackets the seeds."""
    any_row = next(iter(table.values()))
    columns = [f"{name}, {reward}" for reward, runs in any_row.items() for name in runs[0]]
    print(f"| method | {' | '.join(columns)} |\n|---{'|--:' * len(columns)}|")
    for method, runs in table.items():
        cells = []
        for own in runs.values():
            for name in own[0]:
                values = [one[name] for one in own]
                shown = ", ".join(f"{value:.2f}" for value in values)
                cells.append(f"{fmean(values):.2f} ({shown})")
        print(f"| {method} | {' | '.join(cells)} |")


def letters(folder: Path, method: str, reward: str, seed: int) -> Found:
    """Of one run of the letters: the share at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    prompts = folder / "prompts.jsonl"
    lines = [json.dumps({"prompt": str(n), "answer": "a" * 16}) for n in range(40)]
    prompts.write_text("\n".join(lines))
    own = {"kind": "function", "path": __file__, "name": share_of_a.__name__, "label": "a"}
    run = settled(
        folder / f"{method}-{reward}-{seed}", seed, method, prompts, least_cost=True,
        steps=100 if method == "ppo" else 60, batch_size=64, rate=1e-2,
        schedule={"kind": "constant"},
        rollout={"max_tokens": 16}, reward=[{**own, "weight": WEIGHTS[reward], "clip": 1.0}],
    )  # fmt: skip
    shares = [line["reward_a"] for line in read_lines(trained(run) / "metrics.jsonl")]
    return {"share of a": fmean(shares[-5:])}


def addition(folder: Path, method: str, reward: str, seed: int) -> Found:
    """Of one run of sums: how much more exact match than the start."""
    folder.mkdir(parents=True, exist_ok=True)
    sums = folder / "sums.jsonl"
    pairs = [(a, b) for a in range(10, 100) for b in range(a, 100)]
    sums.write_text(
        "\n".join(json.dumps({"prompt": f"{a}+{b}", "answer": str(a + b)}) for a, b in pairs)
    )
    start = fine_tuned(folder / f"sft-{seed}", seed, sums)
    own = {"kind": "task", "weight": WEIGHTS[reward]}
    run = settled(
        folder / f"{method}-{reward}-{seed}", seed, method, sums, least_cost=False,
        steps=240, batch_size=256, rate=5e-4, schedule={"kind": "cosine", "warmup": 0.2},
        rollout={"max_tokens": 4, "epochs": 2}, reward=[own],
    )  # fmt: skip
    run |= {"start": str(start), "eval": scores(sums)}
    del run["model"], run["tokenizer"]
    last = read_lines(trained(run) / "metrics.jsonl")[-5:]
    before, after = (exact_match(Path(one)) for one in (start, run["folder"]))
    return {"before": before, "after": after, "nats": fmean(line["kl"] for line in last)}


def exact_match(run: Path) -> float:
    """Percent of the questions that no training asks."""
    return 100 * read_json(run / "results.json")["scores"]["all"]["value"]


def scores(sums: Path) -> dict[str, Any]:
    tasks = [{"kind": "prompts", "path": str(sums)}]
    measure = {"kind": "scores", "tasks": tasks, "questions": 500, "max_tokens": 4}
    return {"measures": {"scores": measure}}


def fine_tuned(folder: Path, seed: int, sums: Path) -> Path:
    """The start of the sums: trained until it is right in a third of them, which takes another
    number of steps with each seed.
    """
    for steps in range(140, 600, 20):
        if not (folder / "results.json").exists() or exact_match(folder) < 33:
            run_to_end(parse(RunConfig, fine_tuning(folder, seed, sums, steps)))
    return folder


def fine_tuning(folder: Path, seed: int, sums: Path, steps: int) -> dict[str, Any]:
    return {
        **untrained(folder, seed, layers=2),
        "data": {"tasks": [{"kind": "prompts", "path": str(sums)}], "format": "chat",
                 "questions": 50_000, "held_out": 0},
        "eval": scores(sums),
        "train": {
            "steps": steps, "batch_size": 64, "context": 16, "precision": "fp32",
            "optimizer": {"kind": "muon", "rate": 3e-3}, "schedule": {"kind": "constant"},
        },
    }  # fmt: skip


def untrained(folder: Path, seed: int, layers: int) -> dict[str, Any]:
    return {
        "folder": str(folder), "seed": seed, "device": "cpu",
        "tokenizer": {"kind": "bytes", "specials": True},
        "model": {
            "vocabulary": 262, "width": 64, "layers": layers, "context": 64,
            "attention": {"kind": "gqa", "heads": 4, "qk_norm": "head"},
        },
    }  # fmt: skip


def settled(
    folder: Path, seed: int, method: str, prompts: Path, *, least_cost: bool, steps: int,
    batch_size: int, rate: float, rollout: dict[str, Any], reward: list[dict[str, Any]],
    schedule: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """A run of a policy gradient from nothing. PPO learns from each rollout twice."""
    objective = dict(METHODS[method])
    usual = PPO().kl if method == "ppo" else GRPO.model_validate(objective).kl
    objective["kl"] = min(usual, 0.002) if least_cost else max(usual, 0.001)
    ppo = {"group": 1, "epochs": 2} if method == "ppo" else {"group": 4}
    return {
        **untrained(folder, seed, layers=1 if least_cost else 2),
        "data": {"tasks": [{"kind": "prompts", "path": str(prompts)}], "format": "chat",
                 "held_out": 0},
        "train": {
            "steps": steps, "batch_size": batch_size, "objective": objective, "precision": "fp32",
            "rollout": {**ppo, **rollout}, "reward": reward, "schedule": schedule,
            "optimizer": {"kind": "adamw", "rate": rate, "weight_decay": 0.0},
        },
        "eval": {"measures": {}},
    }  # fmt: skip


def trained(settings: dict[str, Any]) -> Path:
    """The folder of a run, which is trained if it is not there."""
    folder = Path(settings["folder"])
    if not (folder / "results.json").exists():
        run_to_end(parse(RunConfig, settings))
    return folder


def run_to_end(config: RunConfig) -> None:
    """Train. A run that is asked to stop ends the bench too, in place of being measured half done.

    Raises:
        SystemExit: it was stopped.
    """
    if not train(config).finished:
        raise SystemExit(f"{config.folder} was stopped; start again to continue it")


TASKS: dict[str, Callable[[Path, str, str, int], Found]] = {
    "letters": letters,
    "addition": addition,
}

if __name__ == "__main__":
    main()
