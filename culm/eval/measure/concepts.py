"""Retrieval of the next concept in held-out text, by a model of concepts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from culm.concept.diffusion import Sampler
from culm.concept.model import ConceptModel
from culm.concept.network import ConceptNetwork
from culm.concept.retrieval import mean_before, other_texts, queries, ranks
from culm.eval.measure.measure import MeasureConfig, Subject
from culm.model.context import Context


class Concepts(MeasureConfig):
    """Results: `mrr`, `recall_at_10` and `contrastive` of the next concept among `candidates`;
    `copy_mrr` and `mean_mrr` of the last concept and of the mean of all so far; `shuffled_mrr` of
    the network after the context of another text, a control; `mse`, per element of a normalised
    concept.

    tokens: held-out tokens that are read, evenly spread. candidates: the next concepts of this many
    places, each of which is asked for. context: concepts before such a place at least. samples: of
    each prediction, averaged, where the network samples. sampler: one step from noise alone is a
    diffusion network's mean of all that may follow.
    """

    kind: Literal["concepts"] = "concepts"
    tokens: PositiveInt = 100_000
    candidates: PositiveInt = 1000
    context: PositiveInt = 4
    samples: PositiveInt = 4
    sampler: Sampler = Sampler(steps=1, guidance=1.0)

    def check(self, subject: Subject) -> None:
        """The model must have a network over concepts."""
        if not isinstance(subject.model, ConceptModel) or subject.model.network is None:
            raise ValueError("kind: concepts measures models of culm train lcm only; leave it out")

    def measure(self, subject: Subject) -> dict[str, Any]:
        """Nothing without held-out text. Each rank measures all of it."""
        rows, model = subject.held_out(), subject.model
        if rows is None or not isinstance(model, ConceptModel) or model.network is None:
            return {}
        with torch.inference_mode():
            concepts, present = normalized(model, rows.sample(self.tokens))
            random = torch.Generator().manual_seed(subject.seed)
            places = queries(present, self.context, self.candidates, random)
            if not len(places):
                raise ValueError(
                    f"context: no held-out row has {self.context} sentences and one after; "
                    "lower it, or use more text"
                )
            found, other = (
                predicted(model.network, given, self.sampler, random, self.samples)
                for given in (concepts, other_texts(concepts))
            )
            return _results(found, other, concepts, places)


def normalized(model: ConceptModel, batches: Iterator[Any]) -> tuple[Tensor, Tensor]:
    """Concepts (B, S, C) of all rows, and which of them are present, (B, S)."""
    assert model.network is not None
    limit, parts = model.network.config.trunk.context, []
    for batch in batches:
        batch = batch.to(model.device)
        context = Context(batch.positions, batch.documents, padding=batch.padding)
        concepts, present = model.concepts(batch.tokens, context)
        parts.append((model.normalizer(concepts[:, :limit]), present[:, :limit]))
    concepts, present = (torch.cat(part) for part in zip(*parts, strict=True))
    return concepts, present


def predicted(
    network: ConceptNetwork, concepts: Tensor, sampler: Sampler, random: torch.Generator,
    samples: int,
) -> Tensor:  # fmt: skip
    """(B, S, C): the next concept after each, the mean of some samples."""
    total = torch.zeros_like(concepts)
    for _ in range(samples):
        noise = network.random(concepts.shape[:2], random).to(concepts.device)
        total += network.predictions(concepts, sampler, noise)
    return total / samples


def _results(found: Tensor, other: Tensor, concepts: Tensor, places: Tensor) -> dict[str, float]:
    rows, at = places.T
    truth = concepts[rows, at + 1]
    own, shuffled = (ranks(one[rows, at], truth) for one in (found, other))
    return {
        "mrr": own.mrr,
        "recall_at_10": own.recall(10),
        "contrastive": own.contrastive,
        "mse": float((found[rows, at] - truth).square().mean()),
        "shuffled_mrr": shuffled.mrr,
        "copy_mrr": ranks(concepts[rows, at], truth).mrr,
        "mean_mrr": ranks(mean_before(concepts)[rows, at], truth).mrr,
    }
