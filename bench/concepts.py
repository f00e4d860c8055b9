"""Retrieval of the next sentence of held-out books, by models of concepts and by baselines.

    python bench/concepts.py RUN [RUN ...] [--candidates 1000] [--seeds 3] [--plot FILE.svg]

Each RUN is one of `culm train lcm`; all have the same autoencoder and corpus. A query is a place
with at least four sentences before it, the candidates are the next sentences of all queries, and
the score is the cosine of concepts. Baselines: the last concept, the mean of all so far, and ridge
regression of the next one on the last, on the mean of the last four, and on both and the mean of
all so far, fitted to training rows. Two controls: chance, and each network after the sentences of
another text. A difference has a 95 % interval by paired bootstrap over queries.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from culm.concept.diffusion import Sampler
from culm.concept.model import ConceptModel
from culm.concept.retrieval import Ranks, mean_before, other_texts, queries, ranks
from culm.convert.load import load_model
from culm.eval.interval import bootstrap, difference
from culm.eval.measure.concepts import normalized, predicted
from culm.parallel.ranks import Ranks as Processes
from culm.run.assemble import loader
from culm.run.settings import RunConfig
from culm.tokenizer.tokenizer import Tokenizer
from culm.train.run_folder import read_settings

CONTEXT = 4  # sentences before a query, at least
TOKENS = {"train": 200_000, "held_out": 150_000}
PENALTIES = (1e1, 1e2, 1e3, 1e4, 1e5)
MEAN = Sampler(steps=1, guidance=1.0)  # of a diffusion network: the mean of what may follow
FEW = Sampler(steps=10)


def rows_of(folder: Path, split: str, tokenizer: Tokenizer):
    """The rows of a split of a run's corpus."""
    config = read_settings(folder, RunConfig)
    assert config is not None
    path = config.data.corpus or folder / "data"
    context = config.train.context or load_model(folder)[0].config.context
    return loader(config, tokenizer, path, context, Processes(), split).sample(TOKENS[split])


def ridge(features: Tensor, targets: Tensor) -> Tensor:
    """Weights (F + 1, C) of the penalty that is best for the last tenth of the rows."""
    ones = torch.ones(len(features), 1)
    inputs, cut = torch.cat((features, ones), 1).double(), len(features) * 9 // 10
    found = []
    for penalty in PENALTIES:
        x, y = inputs[:cut], targets[:cut].double()
        weights = torch.linalg.solve(x.T @ x + penalty * torch.eye(x.shape[1]), x.T @ y)
        error = (inputs[cut:] @ weights - targets[cut:].double()).square().mean()
        found.append((float(error), weights))
    return min(found, key=lambda pair: pair[0])[1]


def applied(weights: Tensor, features: Tensor) -> Tensor:
    """Predictions (..., C) from features (..., F)."""
    return (features.double() @ weights[:-1] + weights[-1]).float()


def baselines(train: tuple[Tensor, Tensor], concepts: Tensor) -> dict[str, Tensor]:
    """Predictions (B, S, C) of each."""
    known, present = train
    follows = present[:, 1:] & present[:, :-1]
    targets = known[:, 1:][follows]
    found = {"last concept": concepts, "mean of all so far": mean_before(concepts)}
    for name, features in (
        ("the last", lambda one: one),
        ("the mean of four", lambda one: mean_before(one, 4)),
        ("the last, the mean of four and of all", _all_means),
    ):
        weights = ridge(features(known)[:, :-1][follows], targets)
        found[f"ridge on {name}"] = applied(weights, features(concepts))
    return found


def _all_means(concepts: Tensor) -> Tensor:
    """(B, S, 3 C)."""
    return torch.cat((concepts, mean_before(concepts, 4), mean_before(concepts)), -1)


def row(name: str, found: Ranks, best: Ranks | None) -> dict[str, object]:
    """A line of the table."""
    mrr = bootstrap(found.reciprocal.tolist())
    line: dict[str, object] = {
        "name": name, "mrr": mrr.value, "low": mrr.low, "high": mrr.high,
        "recall_at_10": found.recall(10), "contrastive": found.contrastive,
    }  # fmt: skip
    if best is not None:
        gain = difference(found.reciprocal.tolist(), best.reciprocal.tolist())
        line["over_best_baseline"] = [gain.value, gain.low, gain.high]
    return line


def report(folders: list[Path], candidates: int, seed: int) -> list[dict[str, object]]:
    """The lines of all baselines and runs, on the same queries."""
    lines: list[dict[str, object]] = []
    best: Ranks | None = None
    for folder in folders:
        model, tokenizer = load_model(folder)
        assert isinstance(model.eval(), ConceptModel)
        assert model.network is not None
        concepts, present = normalized(model, rows_of(folder, "held_out", tokenizer))
        places = queries(present, CONTEXT, candidates, torch.Generator().manual_seed(seed))
        at = tuple(places.T)
        truth = concepts[at[0], at[1] + 1]
        if best is None:
            train = normalized(model, rows_of(folder, "train", tokenizer))
            found = {n: ranks(p[at], truth) for n, p in baselines(train, concepts).items()}
            best = max(found.values(), key=lambda one: one.mrr)
            lines += [row(name, one, None) for name, one in found.items()]
            chance = ranks(torch.randn(truth.shape), truth)
            lines.append(row("chance", chance, None))
        for name, given, sampler, samples in (
            (folder.name, concepts, MEAN, 8),
            (f"{folder.name}, context of another text", other_texts(concepts), MEAN, 8),
            (f"{folder.name}, one sample", concepts, FEW, 1),
        ):
            random = torch.Generator().manual_seed(seed)
            means = predicted(model.network, given[places[:, 0]], sampler, random, samples)
            own = means[torch.arange(len(places)), places[:, 1]]
            lines.append(row(name, ranks(own, truth), best))
    return lines


def plot(every: list[list[dict]], path: Path) -> None:
    """Bars of MRR: the mean over seeds."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "culm"
    names = [line["name"] for line in every[0]]
    means = [sum(lines[i]["mrr"] for lines in every) / len(every) for i in range(len(names))]
    low = [min(lines[i]["low"] for lines in every) for i in range(len(names))]
    high = [max(lines[i]["high"] for lines in every) for i in range(len(names))]
    figure, axes = plt.subplots(figsize=(7, 0.34 * len(names) + 0.8))
    spread = [
        [m - a for m, a in zip(means, low, strict=True)],
        [b - m for m, b in zip(means, high, strict=True)],
    ]
    colours = ["#4477aa" if "over_best_baseline" in line else "#bbbbbb" for line in every[0]]
    axes.barh(names, means, xerr=spread, color=colours, ecolor="#555555")
    axes.invert_yaxis()
    axes.set_xlabel("mean reciprocal rank of the next sentence")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Print a table for each seed of queries, as JSON lines and as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--candidates", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    with torch.inference_mode():
        every = [report(given.runs, given.candidates, seed) for seed in range(given.seeds)]
    for lines in every:
        print(json.dumps(lines))
    print(
        "| predictor | MRR | R@10 | contrastive | over the best baseline |\n|---|---|---|---|---|"
    )
    for index, line in enumerate(every[0]):
        mean = {
            key: sum(lines[index][key] for lines in every) / len(every)
            for key in ("mrr", "recall_at_10", "contrastive")
        }
        gains = [lines[index].get("over_best_baseline") for lines in every]
        said = (
            ""
            if gains[0] is None
            else ", ".join(f"{g[0]:+.4f} [{g[1]:+.4f}, {g[2]:+.4f}]" for g in gains)
        )
        print(f"| {line['name']} | {mean['mrr']:.4f} | {mean['recall_at_10']:.3f} | "
              f"{mean['contrastive']:.3f} | {said} |")  # fmt: skip
    if given.plot is not None:
        plot(every, given.plot)


if __name__ == "__main__":
    main()
