"""Draws docs/images/concepts.svg: what networks over concepts predict where B or C may follow A.

    PYTHONPATH=.:tests:tests/concept python docs/concept_plot.py

The documents and the training are those of tests/concept/test_gates.py; half a minute.
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ["SOURCE_DATE_EPOCH"] = "0"  # the same numbers give the same file

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch
from test_gates import QUANTIZED, SMALL, TWO_TOWER, near, samples

from culm.concept.squared_error import Base

mpl.rcParams |= {"svg.hashsalt": "culm", "svg.fonttype": "none", "font.size": 9}

IMAGE = Path(__file__).parent / "images" / "concepts.svg"
NETWORKS = {
    "base": (Base(trunk=SMALL), 60),
    "two_tower": (TWO_TOWER, 150),
    "quantized": (QUANTIZED, 60),
}


def main() -> None:
    """Train, print the shares near a mode, and draw."""
    figure, every = plt.subplots(1, 3, figsize=(7.2, 2.2), sharex=True)
    for axes, (name, (config, steps)) in zip(every, NETWORKS.items(), strict=True):
        shares, places = [], []
        for seed in range(3):
            found, modes = samples(config, steps, 1e-2, seed, 400)
            middle, half = modes.mean(0), (modes[0] - modes[1]) / 2
            places += ((found - middle) @ half / half.square().sum()).tolist()
            shares.append(near(found, modes))
        print(
            name,
            steps,
            [f"{close:.3f} near a mode, {first:.3f} of them B" for close, first in shares],
        )
        axes.hist(places, bins=torch.linspace(-1.5, 1.5, 31).tolist(), color="#1b6b4c")
        axes.set(title=name, yticks=[], xticks=[-1, 0, 1])
        axes.set_xticklabels(["C", "mean", "B"])
        axes.spines[["top", "right", "left"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(IMAGE, metadata={"Date": None})


if __name__ == "__main__":
    main()
