"""Whether hyperbolic space holds a hierarchy better than flat space: a table over seeds.

    python bench/poincare.py data/mammal_closure.tsv --dimensions 2 5

For each dimension and geometry the learning rate is the best of a grid, by MAP with a seed of its
own; then other seeds are trained with it. Everything else is the same: loss, negatives, steps,
optimizer (Riemannian Adam, which is Adam in flat space). Intervals are those of Student over seeds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from culm import log
from culm.config import parse
from culm.eval.interval import student
from culm.graph.settings import GraphRun
from culm.graph.train import train_graph

TUNING = 1000  # the seed of the grid


def measured(arguments: argparse.Namespace, seed: int, **model: object) -> dict[str, float]:
    """MAP and mean rank of one run. model: its settings, and the rate."""
    rate = model.pop("rate")
    with TemporaryDirectory() as folder:
        config = parse(GraphRun, {
            "folder": f"{folder}/run", "seed": seed, "device": "cpu", "model": model,
            "data": {"path": arguments.edges, "closure": arguments.closure},
            "train": {
                "steps": arguments.steps, "batch_size": arguments.batch_size,
                "negatives": arguments.negatives,
                "optimizer": {"kind": arguments.optimizer, "rate": rate},
                "schedule": {"kind": "linear", "warmup": 0.05, "final": 0.1},
            },
            "eval": {"nodes": arguments.nodes},
        })  # fmt: skip
        results = train_graph(config).results
    found = {"map": results["map"]["value"], "mean_rank": results["mean_rank"]}
    line = {"seed": seed, "rate": rate, **model, **found, "seconds": results["seconds"]}
    print(json.dumps(line), flush=True)
    return found


def over(values: Sequence[float]) -> str:
    """Mean and half width of the 95 % interval."""
    mean = student(values)
    return f"{mean.value:.3f} +- {mean.high - mean.value:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("edges")
    parser.add_argument("--closure", action="store_true")
    parser.add_argument("--dimensions", type=int, nargs="+", default=[2, 5])
    parser.add_argument("--geometries", nargs="+", default=["euclidean", "poincare"])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.1, 0.3, 1.0])
    parser.add_argument("--optimizer", default="riemannian_adam")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--negatives", type=int, default=20)
    parser.add_argument("--nodes", type=int, help="queries of a measurement; all unless given")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    log.console.quiet = True  # lines of single runs
    rows = []
    for dimension in arguments.dimensions:
        for geometry in arguments.geometries:
            model = {"dimension": dimension, "geometry": geometry}
            grid = {
                rate: measured(arguments, TUNING, **model, rate=rate)["map"]
                for rate in arguments.rates
            }
            best = max(grid, key=lambda rate: grid[rate])
            seeds = [measured(arguments, s, **model, rate=best) for s in range(arguments.seeds)]
            rows.append({**model, "rate": best, "grid": grid, "seeds": seeds})
    print("\ndimension  geometry    rate    MAP              mean rank")
    for row in rows:
        maps, ranks = ([one[name] for one in row["seeds"]] for name in ("map", "mean_rank"))
        print(
            f"{row['dimension']:<10} {row['geometry']:<11} {row['rate']:<7} {over(maps)}  "
            f"{over(ranks)}"
        )
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
