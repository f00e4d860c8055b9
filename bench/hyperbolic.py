"""A hyperbolic decoder against its Euclidean twin of as many parameters: a table over seeds.

    python bench/hyperbolic.py data/tinyshakespeare_input.txt --seeds 3

Models of bytes with 4 layers and a width of 128. For each, the better of two learning rates is
found with seed 0; other seeds are trained with it. `off` is the largest |<x, x>_L + 1/c| of points
in a forward of the trained model in fp32, before their time is dropped. The last row is the entropy
of single bytes, which a model that reads nothing would reach.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from math import log
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import torch

from culm import log as messages
from culm.config import parse
from culm.convert.load import load_model
from culm.eval.interval import student
from culm.hyperbolic.lorentz import lorentz_inner
from culm.model import block
from culm.model.attention import hyperbolic
from culm.plan.scaling import comparable
from culm.run.settings import RunConfig
from culm.run.train import train

RATES = (1e-3, 3e-3)
MODELS: dict[str, dict[str, Any]] = {
    "euclidean twin": {
        "attention": {"kind": "gqa", "heads": 4, "qk_norm": "head", "bias": True, "out_bias": True},
        "mlp": {"kind": "swiglu", "hidden": 354},
    },
    "hyperbolic": {
        "attention": {"kind": "hyperbolic", "heads": 4, "qk_norm": True},
        "mlp": {"kind": "hyperbolic", "hidden": 352},
        "residual": {"curvature": 1.0},
    },
}  # fmt: skip


def measured(arguments: argparse.Namespace, name: str, rate: float, seed: int) -> dict[str, float]:
    """Held-out loss in nats per byte, parameters, seconds, and how far points are off."""
    size = {"vocabulary": 262, "width": 128, "layers": 4, "context": 64}
    with TemporaryDirectory() as folder:
        config = parse(RunConfig, {
            "folder": f"{folder}/run", "seed": seed, "device": "cpu",
            "tokenizer": {"kind": "bytes", "specials": True},
            "model": {**size, **MODELS[name]},
            "data": {"path": arguments.text, "held_out": 0.05, "split": "paragraphs"},
            "train": {
                "steps": arguments.steps, "batch_size": 16, "precision": "fp32",
                "optimizer": {"kind": "adamw", "rate": rate}, "update_ratio_every": None,
            },
            "eval": {"measures": {"held_out": {"tokens": 40_000}}},
        })  # fmt: skip
        results = train(config).results
        model, _ = load_model(f"{folder}/run")
        found = {
            "loss": results["loss"], "seconds": results["seconds"], "off": off(model),
            "parameters": float(sum(p.numel() for p in model.parameters())),
        }  # fmt: skip
    print(json.dumps({"model": name, "rate": rate, "seed": seed, **found}), flush=True)
    return found


@torch.no_grad()
def off(model: torch.nn.Module) -> float:
    """Of all centroids and sums of a forward in fp32."""
    seen = [0.0]
    before = hyperbolic.centroid_of, block.lorentz_sum

    def watched(function):
        def call(*given):
            points = function(*given)
            seen.append(float((lorentz_inner(points, points) + 1).abs().max()))
            return points

        return call

    hyperbolic.centroid_of, block.lorentz_sum = map(watched, before)
    model(torch.randint(256, (4, 64), generator=torch.Generator().manual_seed(0)))
    hyperbolic.centroid_of, block.lorentz_sum = before
    return max(seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    messages.console.quiet = True  # lines of single runs
    rows = []
    for name in arguments.models:
        grid = {rate: measured(arguments, name, rate, 0) for rate in RATES}
        best = min(grid, key=lambda rate: comparable(grid[rate]["loss"]))
        more = [measured(arguments, name, best, seed) for seed in range(1, arguments.seeds)]
        rows.append((name, best, [grid[best], *more]))
    print("\nmodel                 parameters  rate   nats per byte    seconds  off")
    for name, rate, found in rows:
        loss = student([one["loss"] for one in found])
        print(
            f"{name:<21} {found[0]['parameters']:<11,.0f} {rate:<6} {loss.value:.3f} +- "
            f"{loss.high - loss.value:.3f}  {fmean(one['seconds'] for one in found):<8.0f} "
            f"{max(one['off'] for one in found):.1e}"
        )
    text = Path(arguments.text).read_bytes()
    shares = [count / len(text) for count in Counter(text).values()]
    print(f"single bytes: {-sum(share * log(share) for share in shares):.3f}")


if __name__ == "__main__":
    main()
