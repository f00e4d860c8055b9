"""Thoughts against words, pause tokens and nothing, on walks in a graph: a table over seeds.

    python bench/thoughts.py [--seeds 0 1 2] [--kinds none words pause latent] [--reset]

Each kind has the same model, data and number of steps (`culm train coconut`); pause tokens and
thoughts have the same curriculum. Answers are those to unseen graphs, greedy, through the engine;
`tokens` counts latents and written tokens of an answer, its two ends included. Chance is 0.5: one
of two candidates.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from culm import log
from culm.config import parse
from culm.run.settings import RunConfig
from culm.run.train import train

KINDS = ("none", "words", "pause", "latent")


def measured(given: argparse.Namespace, thoughts: str, seed: int) -> dict[str, float]:
    """Accuracy, tokens of an answer and seconds of one run."""
    task: dict[str, Any] = {"kind": "graph", "nodes": given.nodes, "hops": given.hops}
    stages = given.stages or given.hops[1]
    measure = {
        "kind": "thoughts", "task": task, "thoughts": thoughts, "questions": given.questions,
        "latents": given.latents or stages,
    }  # fmt: skip
    with TemporaryDirectory() as folder:
        config = parse(RunConfig, {
            "folder": str(given.keep / f"{thoughts}-{seed}") if given.keep else f"{folder}/run",
            "seed": seed, "device": "cpu", "tokenizer": "bytes",
            "model": {
                "vocabulary": 260, "width": given.width, "layers": given.layers, "context": 256,
                "attention": {"kind": "gqa", "heads": 4, "qk_norm": "head"},
            },
            "data": {
                "format": "thoughts", "held_out": 0, "tasks": [task], "questions": given.examples,
            },
            "train": {
                "steps": given.steps, "batch_size": given.batch_size, "update_ratio_every": None,
                "objective": {
                    "kind": "coconut", "thoughts": thoughts, "stages": stages,
                    "stage_steps": given.stage_steps, "reset_optimizer": given.reset,
                },
                "optimizer": {"kind": given.optimizer, "rate": given.rate, "weight_decay": 0.01},
                "schedule": {"kind": "wsd", "warmup": 0.02, "decay": 0.1},
            },
            "eval": {"measures": {"thoughts": measure}},
        })  # fmt: skip
        results = train(config).results
    found = {name: results[name] for name in ("accuracy", "answer_tokens", "seconds")}
    print(json.dumps({"thoughts": thoughts, "seed": seed, **found}), flush=True)
    return found


def settings() -> argparse.ArgumentParser:
    """What can be given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--nodes", type=int, default=6)
    parser.add_argument("--hops", type=int, nargs=2, default=[2, 2])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--stages", type=int, help="the hops of the longest walk, if not given")
    parser.add_argument("--latents", type=int, help="when asked; of the last stage, if not given")
    parser.add_argument("--stage-steps", type=int, default=250)
    parser.add_argument("--reset", action="store_true")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--optimizer", default="muon")
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--examples", type=int, default=30_000)
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--keep", type=Path, help="a folder for the runs")
    return parser


def main() -> None:
    """Print a line for each run, and a table."""
    given = settings().parse_args()
    log.console.quiet = True  # lines of single runs
    found = {kind: [] for kind in given.kinds}
    for seed in given.seeds:
        for kind in given.kinds:
            found[kind].append(measured(given, kind, seed))
    for kind, runs in found.items():
        each = ", ".join(f"{100 * one['accuracy']:.0f}" for one in runs)
        accuracy = 100 * fmean(one["accuracy"] for one in runs)
        tokens = fmean(one["answer_tokens"] for one in runs)
        print(f"| {kind} | {accuracy:.1f} ({each}) | {tokens:.1f} |")


if __name__ == "__main__":
    main()
