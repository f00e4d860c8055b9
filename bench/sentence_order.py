"""Whether sentences that are read in context tell the order of a text: a table over seeds.

    python bench/sentence_order.py FILE [FILE ...] [--seeds 3] [--steps 1000] [--encoder minilm]

A pair is eight neighbouring sentences of a held-out book, and the same in a random order; which is
the text? Chance is 0.5. It is the one whose sentences are, in the mean, closer to what a network of
squared error predicts at each place, by the cosine of concepts.

    in context         the state of a sentence depends on all before it
    the one before     a network of its own that reads and learns pairs of neighbours: context-free
    context of others  the first network, with those of another text before each sentence

and without a network, the cosine of neighbours. Concepts are those of `bench/concept_space.py`.
"""

from __future__ import annotations

import argparse
import json

import torch
import torch.nn.functional as F
from concept_space import TRUNK, add_settings, split_by_book, trained
from torch import Tensor

from culm.concept.network import ConceptNetwork
from culm.concept.retrieval import other_texts
from culm.concept.squared_error import Base
from culm.eval.interval import student

SENTENCES = 8  # of a text


def fit(predicted: Tensor, texts: Tensor) -> Tensor:
    """(N,): the mean cosine of predictions (N, S - 1, C) and sentences of texts (N, S, C)."""
    return F.cosine_similarity(predicted, texts[:, 1:], dim=-1).mean(1)


def of_others(network: ConceptNetwork, texts: Tensor) -> Tensor:
    """(N, S - 1, C): predictions after each sentence of texts (N, S, C), and others before it."""
    others, found = other_texts(texts), []
    for place in range(texts.shape[1] - 1):
        rows = torch.cat((others[:, :place], texts[:, place : place + 1]), 1)
        found.append(network(rows)[:, -1])
    return torch.stack(found, 1)


def shuffled(texts: Tensor, random: torch.Generator) -> Tensor:
    """(N, S, C), each row in another order."""
    orders = torch.rand(texts.shape[:2], generator=random).argsort(1)
    return texts.gather(1, orders[..., None].expand_as(texts))


@torch.no_grad()
def accuracies(train: Tensor, test: Tensor, steps: int, seed: int) -> dict[str, float]:
    """Of each way, on the same pairs (N, S, C)."""
    other = shuffled(test, torch.Generator().manual_seed(seed))
    pairs = torch.stack((train[:, :-1], train[:, 1:]), 2).flatten(0, 1)
    with torch.enable_grad():
        whole, last = (trained(Base(trunk=TRUNK), rows, steps, seed) for rows in (train, pairs))

    def alone(one: Tensor) -> Tensor:
        return last(one[:, :-1].flatten(0, 1)[:, None]).view_as(one[:, 1:])

    ways = {
        "in context": lambda one: whole(one[:, :-1]),
        "the one before": alone,
        "context of others": lambda one: of_others(whole, one),
        "cosine of neighbours": lambda one: one[:, :-1],
    }
    return {
        name: float((fit(way(test), test) > fit(way(other), other)).double().mean())
        for name, way in ways.items()
    }


def main() -> None:
    """Print a table: the mean over seeds, with an interval by Student."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_settings(parser)
    given = parser.parse_args()
    train, test = split_by_book(given, SENTENCES)
    every = [accuracies(train, test, given.steps, seed) for seed in range(given.seeds)]
    for found in every:
        print(json.dumps(found))
    for name in every[0]:
        share = student([found[name] for found in every])
        half = 100 * (share.high - share.value)
        print(f"| {name} | {100 * share.value:.1f} +- {half:.1f} |")


if __name__ == "__main__":
    main()
