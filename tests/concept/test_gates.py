"""Gates of concept networks on synthetic documents, where the right answer is known."""

import pytest
import torch
from gates import Grammar, forked, generator, trained

from culm.concept.diffusion import Sampler
from culm.concept.network import ConceptTrunk, NetworkConfig
from culm.concept.one_tower import OneTower
from culm.concept.quantized import Quantized
from culm.concept.squared_error import Base
from culm.concept.two_tower import TwoTower
from culm.model.attention.gqa import GQA

WIDE = GQA(heads=2, qk_norm="head")
SMALL = ConceptTrunk(width=24, layers=1, context=8, attention=(WIDE,))
UNGUIDED = Sampler(steps=20, guidance=1.0, noise=1.0)
TWO_TOWER = TwoTower(trunk=SMALL, denoiser_layers=1, denoiser_heads=2)
QUANTIZED = Quantized(trunk=SMALL, codebooks=2, codes=8)


def samples(config: NetworkConfig, steps: int, rate: float, seed: int = 0, count: int = 200):
    """(N, C) predictions after A, and (2, C) what may follow it."""
    network = trained(config, lambda step: forked(step, seed)[0], steps, rate, seed)
    documents, modes = forked(10_000, seed, count)
    random = network.random((count, 1), generator(seed, 7))
    with torch.no_grad():
        return network.predictions(documents[:, :1], UNGUIDED, random)[:, 0], modes


def near(found: torch.Tensor, modes: torch.Tensor) -> tuple[float, float]:
    """The share of samples that are near a mode, by 20 % of the distance of both; and the share of
    these that are near the first one.
    """
    distances = torch.cdist(found, modes) / (modes[0] - modes[1]).norm()
    close = distances.min(1).values < 0.2
    return float(close.float().mean()), float((distances[close].argmin(1) == 0).float().mean())


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_squared_error_predicts_between_both_that_may_follow(seed: int) -> None:
    found, modes = samples(Base(trunk=SMALL), 60, 1e-2, seed)
    nearest = torch.cdist(found, modes).min(1).values / (modes[0] - modes[1]).norm()
    assert 0.4 < float(nearest.mean()) < 0.6


def check_samples(config: NetworkConfig, steps: int, seed: int) -> None:
    share, first = near(*samples(config, steps, 1e-2, seed))
    assert share >= 0.9
    assert 0.35 <= first <= 0.65


@pytest.mark.parametrize(
    ("config", "steps"), [(TWO_TOWER, 120), (QUANTIZED, 60)], ids=["two_tower", "quantized"]
)
def test_samples_are_what_may_follow_and_not_the_mean(config: NetworkConfig, steps: int) -> None:
    check_samples(config, steps, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(
    "config", [OneTower(trunk=SMALL), TWO_TOWER, QUANTIZED], ids=lambda one: one.kind
)
def test_samples_are_what_may_follow_with_more_steps(config: NetworkConfig, seed: int) -> None:
    check_samples(config, 300, seed)


def recall(config: NetworkConfig, grammar: Grammar, steps: int, rate: float) -> float:
    """R@1 of the third concept and all after it, in new documents."""
    network = trained(config, grammar.documents, steps, rate, grammar.seed)
    ids = grammar.ids(100_000)
    given = grammar.vectors[ids][:, :-1]
    random = network.random(given.shape[:2], generator(grammar.seed, 7))
    with torch.no_grad():
        found = network.predictions(given, UNGUIDED, random)
    return grammar.recall(found[:, 1:], ids[:, 2:])


def recall_of_last_only(grammar: Grammar) -> float:
    """The same of the best function of the last concept alone, from the documents of 200 steps."""
    size = len(grammar.vectors)
    counts = torch.zeros(size, size)
    for step in range(200):
        ids = grammar.ids(step)
        pairs = ids[:, 1:-1] * size + ids[:, 2:]
        counts += torch.bincount(pairs.flatten(), minlength=size * size).view(size, size)
    ids = grammar.ids(100_000)
    return float((counts.argmax(1)[ids[:, 1:-1]] == ids[:, 2:]).float().mean())


def test_the_next_concept_is_learned_from_the_last_two() -> None:
    grammar = Grammar(0, concepts=12, dim=8)
    trunk = ConceptTrunk(width=64, layers=2, context=12, attention=(WIDE,))
    assert recall_of_last_only(grammar) < 0.6
    assert recall(Base(trunk=trunk), grammar, 200, 5e-3) > 0.9


LARGE = ConceptTrunk(width=128, layers=3, context=12, attention=(GQA(heads=4, qk_norm="head"),))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("config", "steps"),
    [
        (Base(trunk=LARGE), 2000),
        (OneTower(trunk=LARGE), 3000),
        (TwoTower(trunk=LARGE, denoiser_layers=2, denoiser_heads=4), 3000),
        (Quantized(trunk=LARGE, codebooks=2, codes=50), 2000),
    ],
    ids=["base", "one_tower", "two_tower", "quantized"],
)
def test_the_grammar_of_fifty_concepts(config: NetworkConfig, steps: int) -> None:
    grammar = Grammar(0)
    assert recall_of_last_only(grammar) <= 0.6
    assert recall(config, grammar, steps, 2e-3) >= 0.95
