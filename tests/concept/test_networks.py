"""Concept networks: causality, cached and full, guidance, and padding; all four kinds."""

import pytest
import torch
from gates import DIM, KINDS, NETWORKS, network_of

from culm.concept.diffusion import Sampler
from culm.concept.network import Chances, ConceptNetwork, NetworkConfig
from culm.config import SettingError, parse

FEW = Sampler(steps=4)
every_network = pytest.mark.parametrize("config", NETWORKS, ids=KINDS)


def concepts(rows: int = 3, size: int = 6, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, size, DIM, generator=torch.Generator().manual_seed(seed))


def predicted(network: ConceptNetwork, given: torch.Tensor, sampler: Sampler = FEW):
    random = network.random(given.shape[:2], torch.Generator().manual_seed(2))
    with torch.no_grad():
        return network.predictions(given, sampler, random)


@every_network
def test_no_prediction_reads_a_later_concept(config: NetworkConfig) -> None:
    network, given = network_of(config), concepts()
    before = predicted(network, given)
    for changed in range(1, given.shape[1]):
        other = given.clone()
        other[:, changed] += 1.0
        after = predicted(network, other)
        torch.testing.assert_close(after[:, :changed], before[:, :changed])
        assert not torch.allclose(after[:, changed], before[:, changed], atol=1e-3)


@every_network
def test_concepts_one_by_one_over_a_cache_are_those_at_once(config: NetworkConfig) -> None:
    network, given = network_of(config, scale=2.0), concepts()
    random = network.random(given.shape[:2], torch.Generator().manual_seed(2))
    history = network.begin(3, 8)
    with torch.no_grad():
        full = network.predictions(given, FEW, random)
        for place in range(given.shape[1]):
            network.read(given[:, place : place + 1], history)
            one = network.next(history, FEW, random[:, place])
            torch.testing.assert_close(one, full[:, place], atol=1e-4, rtol=1e-3)


@every_network
def test_absent_concepts_change_no_loss(config: NetworkConfig) -> None:
    network, given = network_of(config), concepts()
    present = torch.arange(6) < torch.tensor([[6], [3], [1]])
    losses = []
    for filling in (0.0, 5.0):
        filled = torch.where(present[..., None], given, torch.tensor(filling))
        [total] = network.loss(filled, present, Chances.of(3, 0, range(3))).values()
        losses.append(float(total.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@every_network
@pytest.mark.parametrize("estimated", [False, True])
def test_a_loss_is_the_sum_of_those_of_its_rows(config: NetworkConfig, estimated: bool) -> None:
    """Whatever is sampled for others, or was sampled before."""
    network, given = network_of(config), concepts(4)
    present, seeds = torch.arange(6) < torch.tensor([[6], [3], [4], [6]]), [5, 6, 7, 8]

    def loss(rows: slice) -> float:
        chances = Chances(seeds[rows], estimated)
        [total] = network.loss(given[rows], present[rows], chances).values()
        return float(total.detach())

    parts = [loss(slice(at, at + 1)) for at in range(4)]
    assert loss(slice(0, 4)) == pytest.approx(sum(parts), rel=1e-5)
    assert loss(slice(1, 3)) == pytest.approx(parts[1] + parts[2], rel=1e-5)


def test_chances_of_a_row_depend_on_seed_step_and_place() -> None:
    whole = Chances.of(1, 2, range(6))
    assert [*Chances.of(1, 2, range(4)).seeds, *Chances.of(1, 2, range(4, 6)).seeds] == whole.seeds
    assert len({*whole.seeds, *Chances.of(1, 3, range(6)).seeds}) == 12
    assert 40 < sum(Chances.of(0, step, ()).estimated for step in range(100)) < 60


@every_network
def test_a_row_of_one_concept_has_no_loss(config: NetworkConfig) -> None:
    network = network_of(config)
    present, chances = torch.arange(4).expand(2, -1) < 1, Chances.of(0, 0, range(2))
    [total] = network.loss(concepts(2, 4), present, chances).values()
    total.backward()
    assert not total


@every_network
def test_every_weight_learns(config: NetworkConfig) -> None:
    """Self-conditioning is used in half of the batches: some of four have it."""
    network = network_of(config).train()
    for step in range(4):
        chances = Chances.of(0, step, range(3))
        [total] = network.loss(concepts(), torch.ones(3, 6, dtype=torch.bool), chances).values()
        total.backward()
    idle = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle


@pytest.mark.parametrize("config", NETWORKS[1:3], ids=KINDS[1:3])
def test_guidance_of_one_is_no_guidance(config: NetworkConfig, monkeypatch) -> None:
    """Bit for bit, and without a second forward."""
    network, given = network_of(config), concepts()
    random = network.random((3, 6), torch.Generator().manual_seed(2))
    with torch.no_grad():
        once = network.predictions(given, Sampler(steps=3, guidance=1.0, rescale=0.9), random)
        plain = network.predictions(given, Sampler(steps=3, guidance=1.0, rescale=0.0), random)
        much = network.predictions(given, Sampler(steps=3, guidance=3.0, rescale=0.0), random)
        monkeypatch.setattr("culm.concept.diffusion.guided", None)
        again = network.predictions(given, Sampler(steps=3, guidance=1.0), random)
    assert torch.equal(once, plain)
    assert torch.equal(once, again)
    assert not torch.allclose(once, much, atol=1e-2)


@pytest.mark.parametrize("config", NETWORKS[1:3], ids=KINDS[1:3])
def test_without_context_the_context_is_not_read(config: NetworkConfig) -> None:
    network = network_of(config)
    dropped = torch.tensor([True, False, True])
    state, estimate = concepts(seed=5), concepts(seed=6)
    found = []
    for seed in (1, 2):
        predict = network.predictor(concepts(seed=seed), dropped)
        with torch.no_grad():
            given, without = (predict(state, estimate, 50, one) for one in (True, False))
        torch.testing.assert_close(given[dropped], without[dropped])
        found.append(given)
    assert torch.equal(found[0][dropped], found[1][dropped])
    assert not torch.allclose(found[0][1], found[1][1], atol=1e-3)


def test_wrong_settings_say_what_is_wrong() -> None:
    with pytest.raises(SettingError, match=r"denoiser_heads: 5 does not divide trunk\.width=192"):
        parse(type(NETWORKS[2]), {"denoiser_heads": 5})
    windowed = {"trunk": {"attention": {"kind": "gqa", "heads": 6, "window": 4}}}
    with pytest.raises(SettingError, match=r"trunk\.attention: one_tower masks plain"):
        parse(type(NETWORKS[1]), windowed)
