"""Whether sentences that are read in context tell the order of a text: a table over seeds.

    python bench/sentence_order.py FILE [FILE ...] [--seeds 3] [--steps 1500]

A pair is eight neighbouring sentences of a held-out book, and the same in a random order; which is
the text? Chance is 0.5. A Transformer over concepts gives a vector for each sentence; a linear
layer on their mean gives the score of a text.

    in context        the Transformer reads the text; a vector depends on the sentences before
    alone             the same Transformer reads each sentence alone
    context of other  as the first, trained; but before each sentence stand those of another text

and without training: the mean cosine of neighbours, and the error of ridge regression of a sentence
on the one before. Concepts are those of `bench/concept_space.py`.
"""

from __future__ import annotations

import argparse
import json
from statistics import fmean, stdev

import torch
import torch.nn.functional as F
from concept_space import Space, books
from concepts import applied, ridge
from torch import Tensor

from culm.batch import Batch, Loss, Term
from culm.concept.network import ConceptTrunk
from culm.concept.retrieval import other_texts
from culm.model.attention.gqa import GQA
from culm.model.init import initialize
from culm.model.linear import Linear
from culm.model.trunk import Trunk
from culm.objective.objective import Trained
from culm.optim.adamw import AdamW
from culm.optim.schedule import Cosine
from culm.parallel.parallelize import Parallel
from culm.train.trainer import Trainer
from culm.train.update import Update

SENTENCES, ROWS = 8, 64  # of a text; texts of a step
STUDENT = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}  # 97.5 % quantiles of t by the number of seeds
TRUNK = ConceptTrunk(
    width=64, layers=2, context=SENTENCES, attention=(GQA(heads=4, qk_norm="head"),)
)


class Order(Trained):
    """-log p of which text of a pair is in order. context: whether sentences see those before."""

    def __init__(self, dim: int, context: bool, seed: int) -> None:
        super().__init__()
        self.context = context
        self.inward, self.trunk = Linear(dim, TRUNK.width, bias=True), Trunk(TRUNK)
        self.score = Linear(TRUNK.width, 1)
        initialize(self, seed, TRUNK.layers, TRUNK.init)

    def embeddings(self, concepts: Tensor) -> Tensor:
        """(B, S, E) from concepts (B, S, C)."""
        rows = concepts if self.context else concepts.flatten(0, 1)[:, None]
        return self.trunk(self.inward(rows)).view(*concepts.shape[:2], -1)

    def scores(self, concepts: Tensor) -> Tensor:
        """(B,)."""
        return self.score(self.embeddings(concepts).mean(1))[:, 0]

    def of_other_context(self, concepts: Tensor) -> Tensor:
        """(B,): each sentence is read after those of another text."""
        others, found = other_texts(concepts), []
        for place in range(concepts.shape[1]):
            rows = torch.cat((others[:, :place], concepts[:, place : place + 1]), 1)
            found.append(self.embeddings(rows)[:, -1])
        return self.score(torch.stack(found, 1).mean(1))[:, 0]

    def forward(self, batch: Batch) -> Loss:
        ahead = self.scores(batch.extra["texts"]) - self.scores(batch.extra["shuffled"])
        return Loss({"nll": Term(-F.logsigmoid(ahead).sum(), "targets")})


class Pairs:
    """Random texts at each step, each with an order of its own; a function of seed and step."""

    fingerprint = "pairs"

    def __init__(self, concepts: Tensor, seed: int) -> None:
        self.concepts, self.seed = concepts, seed

    def step(self, number: int) -> list[Batch]:
        random = torch.Generator().manual_seed(1_000_003 * self.seed + number)
        starts = torch.randint(len(self.concepts), (ROWS,), generator=random)
        texts = self.concepts[starts]
        tokens = torch.zeros(texts.shape[:2], dtype=torch.int64)
        counts = {"tokens": float(tokens.numel()), "targets": float(ROWS)}
        extra = {"texts": texts, "shuffled": shuffled(texts, random)}
        return [Batch(tokens, tokens, tokens, counts=counts, extra=extra)]

    def state(self, steps: int) -> dict[str, Tensor]:
        return {}

    def restore(self, steps: int, state: object) -> None:
        """Nothing to restore."""


def shuffled(texts: Tensor, random: torch.Generator) -> Tensor:
    """(B, S, C), each row in another order."""
    orders = torch.rand(texts.shape[:2], generator=random).argsort(1)
    return texts.gather(1, orders[..., None].expand_as(texts))


def trained(train: Tensor, context: bool, steps: int, seed: int) -> Order:
    """After some steps on texts (N, S, C)."""
    objective = Order(train.shape[-1], context, seed)
    optimizer = AdamW(rate=1e-3, weight_decay=0.1).build(objective)
    update = Update(Parallel(objective), optimizer, clip=1.0, seed=seed)
    Trainer(update, Cosine(warmup=0.05)).fit(Pairs(train, seed), steps)
    return objective.eval()


def right(texts: Tensor, other: Tensor) -> float:
    """The share of pairs whose text in order has the larger score; ties are half right."""
    near = (texts - other).abs() < 1e-5  # orders of a sum differ by rounding
    return float(((texts > other) & ~near).double().mean() + 0.5 * near.double().mean())


def rows(concepts: Tensor) -> Tensor:
    """(N, S, C): the concepts of a book (M, C) in texts, without what is left at its end."""
    count = len(concepts) // SENTENCES
    return concepts[: count * SENTENCES].view(count, SENTENCES, -1)


def accuracies(train: Tensor, test: Tensor, steps: int, seed: int) -> dict[str, float]:
    """Of each way, on the same pairs (N, S, C)."""
    other = shuffled(test, torch.Generator().manual_seed(seed))
    weights = ridge(train[:, :-1].flatten(0, 1), train[:, 1:].flatten(0, 1))
    own, alone = (trained(train, context, steps, seed) for context in (True, False))

    def neighbours(one: Tensor) -> Tensor:
        return F.cosine_similarity(one[:, 1:], one[:, :-1], dim=-1).mean(1)

    def predicted(one: Tensor) -> Tensor:
        return -(applied(weights, one[:, :-1]) - one[:, 1:]).square().mean((1, 2))

    ways = {
        "in context": own.scores, "alone": alone.scores,
        "context of other": own.of_other_context,
        "cosine of neighbours": neighbours, "ridge on the one before": predicted,
    }  # fmt: skip
    with torch.no_grad():
        return {name: right(way(test), way(other)) for name, way in ways.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--sentences", type=int, default=2000, help="of a book at most")
    parser.add_argument("--dim", type=int, default=64)
    given = parser.parse_args()
    texts = [book[: given.sentences] for book in books(given.files)]
    held = max(1, len(texts) // 5)
    space = Space([one for book in texts[:-held] for one in book], 3000, given.dim)
    train, test = (
        torch.cat([rows(space.concepts(book)) for book in part])
        for part in (texts[:-held], texts[-held:])
    )
    print(f"{len(train):,} texts of training, {len(test):,} held out, of {held} books")
    every = [accuracies(train, test, given.steps, seed) for seed in range(given.seeds)]
    for found in every:
        print(json.dumps(found))
    for name in every[0]:
        values = [found[name] for found in every]
        half = STUDENT[len(values)] * stdev(values) / len(values) ** 0.5 if given.seeds > 1 else 0
        print(f"| {name} | {100 * fmean(values):.1f} +- {100 * half:.1f} |")


if __name__ == "__main__":
    main()
