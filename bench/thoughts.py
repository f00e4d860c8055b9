"""Thoughts against words, pause tokens and nothing, on walks in a graph: a table over seeds.

    python bench/thoughts.py --seeds 3
    python bench/thoughts.py --records prosqa_valid.json.gz

Each kind has the same model, data, and number of steps, in the same curriculum (`culm train
coconut`). The answers are those of unseen graphs, greedy, through the engine; `tokens` counts
latents and written tokens of an answer. Chance is 0.5: one of two candidates.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from culm import log
from culm.config import parse
from culm.run.settings import RunConfig
from culm.run.train import train

STUDENT = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}  # 97.5 % quantiles of t by the number of seeds
KINDS = ("none", "words", "pause", "latent")


def measured(given: argparse.Namespace, thoughts: str, seed: int) -> dict[str, float]:
    """Accuracy, tokens of an answer and seconds of one run."""
    task: dict[str, Any] = {"kind": "graph", "nodes": given.nodes, "hops": given.hops}
    stages = given.stages or given.hops[1]
    measure = {"task": task, "thoughts": thoughts, "questions": given.questions}
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
            "eval": {"measures": {"thoughts": {"kind": "thoughts", "latents": stages, **measure}}},
        })  # fmt: skip
        results = train(config).results
    found = {name: results[name] for name in ("accuracy", "answer_tokens", "seconds")}
    print(json.dumps({"thoughts": thoughts, "seed": seed, **found}), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--nodes", type=int, default=10)
    parser.add_argument("--hops", type=int, nargs=2, default=[2, 3])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--stages", type=int, help="the hops of the longest walk, if not given")
    parser.add_argument("--stage-steps", type=int, default=500)
    parser.add_argument("--reset", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--examples", type=int, default=50_000)
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--keep", type=Path, help="a folder for the runs")
    given = parser.parse_args()
    log.console.quiet = True  # lines of single runs
    for kind in given.kinds:
        for seed in given.seeds:
            measured(given, kind, seed)


if __name__ == "__main__":
    main()
