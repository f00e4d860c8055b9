"""Exercises of lesson 10a: sentences, and their vectors."""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor

from culm.concept import diffusion, retrieval
from culm.concept import sentences as library
from culm.concept.codes import Codebooks
from culm.concept.normalizer import Normalizer
from culm.learn.exercise import Exercise, Mistake, normal


def sentences(text: str) -> list[str]:
    return library.split(text)


def sentences_answer(text: str) -> list[str]:
    return re.findall(r".+?(?:[.!?]+\s+|$)", text, re.DOTALL)


def normalized(concepts: Tensor) -> Tensor:
    layer = Normalizer(concepts.shape[1])
    layer.fit(concepts)
    return layer(concepts)


def normalized_answer(concepts: Tensor) -> Tensor:
    low, middle, high = concepts.quantile(torch.tensor([0.25, 0.5, 0.75]), dim=0)
    return (concepts - middle) / ((high - low) / 1.3489795)


def mrr(predicted: Tensor, truth: Tensor) -> float:
    return retrieval.ranks(predicted, truth).mrr


def mrr_answer(predicted: Tensor, truth: Tensor) -> float:
    scores = F.normalize(predicted, dim=1) @ F.normalize(truth, dim=1).T
    places = (~(scores < scores.diagonal()[:, None])).sum(1)  # equal ones in the worst order
    return float((1 / places).double().mean())


def codes(vectors: Tensor, entries: Tensor) -> Tensor:
    books = Codebooks(*entries.shape)
    books.entries.copy_(entries)
    return books(vectors)


def codes_answer(vectors: Tensor, entries: Tensor) -> Tensor:
    left, found = vectors, []
    for book in entries:
        found.append(torch.cdist(left, book).argmin(1))
        left = left - book[found[-1]]
    return torch.stack(found, 1)


def _codes_of_vectors(vectors: Tensor, entries: Tensor) -> Tensor:
    return torch.stack([torch.cdist(vectors, book).argmin(1) for book in entries], 1)


def noisy(concepts: Tensor, noise: Tensor, kept: Tensor) -> Tensor:
    return diffusion.noisy(concepts, noise, kept)


def noisy_answer(concepts: Tensor, noise: Tensor, kept: Tensor) -> Tensor:
    share = kept[:, None]
    return share.sqrt() * concepts + (1 - share).sqrt() * noise


def guided(with_context: Tensor, without: Tensor, weight: float) -> Tensor:
    sampler = diffusion.Sampler(guidance=weight, rescale=0)
    return diffusion.guided(with_context, with_context, without, 0.5, sampler)


EXERCISES = (
    Exercise(
        "concepts.sentences",
        "Split a text after marks of an end with white space behind them, which belongs to the "
        "sentence before; joined, they give the text.",
        sentences,
        lambda g: [("It rains. We stay in! Why?",), ("Pi is 3.14. So what",), ("One\nline",)],
        sentences_answer,
        (
            Mistake("3.14 is one number.",
                    lambda text: re.findall(r"[^.!?]+[.!?]*\s*", text)),
            Mistake("white space belongs to the sentence before it.",
                    lambda text: re.split(r"(?<=[.!?])\s+", text)),
        ),
    ),
    Exercise(
        "concepts.normalized",
        "Subtract the median of each column, and divide by the range between its quartiles over "
        "1.3489795.",
        normalized,
        lambda g: [(normal(g, 40, 3) * 5 + 2,), (normal(g, 9, 2),)],
        normalized_answer,
        (
            Mistake("one outlier moves mean and deviation; take median and quartiles.",
                    lambda concepts: (concepts - concepts.mean(0)) / concepts.std(0)),
            Mistake("each column has its own.",
                    lambda concepts: normalized_answer(concepts.reshape(-1, 1)).view_as(concepts)),
        ),
    ),
    Exercise(
        "concepts.mrr",
        "Rank the true concept of each row among all by cosine, 1 the nearest; give the mean of "
        "1 / rank.",
        mrr,
        lambda g: [(normal(g, 6, 4), normal(g, 6, 4)), (torch.eye(3), torch.eye(3) * 5)],
        mrr_answer,
        (
            Mistake("cosine does not depend on lengths.",
                    lambda predicted, truth: float((1 / (1 + ((predicted @ truth.T) > (
                        predicted @ truth.T).diagonal()[:, None]).sum(1))).double().mean())),
            Mistake("this counts only the first places.",
                    lambda predicted, truth: float(((
                        (s := F.normalize(predicted, dim=1) @ F.normalize(truth, dim=1).T)
                        > s.diagonal()[:, None]).sum(1) == 0).double().mean())),
        ),
    ),
    Exercise(
        "concepts.codes",
        "Find the nearest entry of the first codebook, subtract it, go on with the rest in the "
        "next one.",
        codes,
        lambda g: [(normal(g, 6, 4), normal(g, 3, 8, 4)), (normal(g, 2, 3), normal(g, 1, 4, 3))],
        codes_answer,
        (
            Mistake("each codebook reads what the ones before left.", _codes_of_vectors),
        ),
    ),
    Exercise(
        "concepts.noisy",
        "Mix: the root of the kept share times the concept, and the root of the rest times the "
        "noise.",
        noisy,
        lambda g: [(normal(g, 3, 4), normal(g, 3, 4), torch.tensor([1.0, 0.5, 0.0]))],
        noisy_answer,
        (
            Mistake("variances are mixed, so take roots.",
                    lambda concepts, noise, kept: kept[:, None] * concepts
                    + (1 - kept[:, None]) * noise),
        ),
    ),
    Exercise(
        "concepts.guided",
        "Go from the estimate without context towards the one with it, `weight` times as far.",
        guided,
        lambda g: [(normal(g, 3, 4), normal(g, 3, 4), weight) for weight in (3.0, 1.0)],
        lambda with_context, without, weight: without + weight * (with_context - without),
        (
            Mistake("a weight of 1 is the estimate with context.",
                    lambda with_context, without, weight: with_context
                    + weight * (with_context - without)),
        ),
    ),
)  # fmt: skip
