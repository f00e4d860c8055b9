"""Optimizers against torch's own."""

import copy

import pytest
import torch
from torch import nn

from culm.adapt.lora import LoRA
from culm.model.attention.gqa import GQA
from culm.model.mlp.moe import MoE
from culm.model.transformer import Transformer, TransformerConfig
from culm.optim.adamw import AdamW
from culm.optim.groups import hidden_matrices
from culm.optim.muon import Muon, MuonRule, orthogonalize


@pytest.fixture
def model() -> Transformer:
    attention = GQA(heads=2, kv_heads=1, qk_norm="head")
    config = TransformerConfig(vocabulary=23, width=16, layers=2, context=8, attention=(attention,))
    return config.build(0)


def gradients(model: nn.Module, step: int) -> None:
    chance = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=chance) * 0.1


def test_newton_schulz_golden() -> None:
    matrix = torch.tensor([[3.0, 1, 0], [0, 2, 1]], dtype=torch.float64)
    golden = torch.tensor(
        [[0.97909193, 0.32377618, -0.00129390], [-0.00388169, 0.65790354, 0.32959872]],
        dtype=torch.float64,
    )
    torch.testing.assert_close(orthogonalize(matrix), golden, atol=1e-6, rtol=0)
    torch.testing.assert_close(orthogonalize(matrix.mT), golden.mT, atol=1e-6, rtol=0)
    singular = torch.linalg.svdvals(orthogonalize(matrix))
    assert singular.tolist() == pytest.approx([1.06615761, 0.68428729], abs=1e-6)


def test_newton_schulz_of_random_and_empty_matrices() -> None:
    drawn = torch.randn(48, 32, generator=torch.Generator().manual_seed(0))
    assert torch.linalg.svdvals(orthogonalize(drawn)).min() > 0.3
    assert torch.linalg.svdvals(orthogonalize(drawn)).max() < 1.3
    assert orthogonalize(torch.zeros(4, 3)).abs().max() == 0


def test_muon_is_that_of_torch(model: Transformer) -> None:
    """torch iterates in bf16, so the directions differ by its rounding."""
    other = copy.deepcopy(model)
    ours = Muon(rate=0.01, weight_decay=0.1, adamw_ratio=0.3).build(model)
    names = {id(p) for p in hidden_matrices(other)}
    assert len(names) == 2 * 7
    matrices = [p for p in other.parameters() if id(p) in names]
    rest = [p for p in other.parameters() if id(p) not in names]
    groups = [
        {"params": [p for p in rest if p.ndim == 2], "weight_decay": 0.1},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    theirs = [
        torch.optim.Muon(
            matrices, lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(groups, lr=0.003, betas=(0.9, 0.95), eps=1e-8),
    ]
    for step in range(4):
        for part in (model, other):
            gradients(part, step)
        ours.step()
        for optimizer in theirs:
            optimizer.step()
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        update = 0.01 * 0.2 * 4 if id(b) in names else 0.0  # root mean square of four updates
        torch.testing.assert_close(a, b, atol=0.05 * update + 1e-6, rtol=1e-5, msg=name)


def test_update_has_the_size_of_adamw(model: Transformer) -> None:
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    gradients(model, 0)
    Muon(rate=0.1, weight_decay=0.0).build(model).step()
    weight = dict(model.named_parameters())["blocks.0.mlp.up.weight"]
    change = (weight - before["blocks.0.mlp.up.weight"]).square().mean().sqrt() / 0.1
    assert 0.1 < change.item() < 0.3


def test_adamw_decays_matrices_only(model: Transformer) -> None:
    optimizer = AdamW(rate=0.1, weight_decay=0.5).build(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    norm, weight = model.norm.weight.detach().clone(), model.embed.weight.detach().clone()
    optimizer.step()
    assert torch.equal(model.norm.weight, norm)
    torch.testing.assert_close(model.embed.weight, weight * 0.95)


def test_every_parameter_is_in_one_group(model: Transformer) -> None:
    for config in (AdamW(), Muon()):
        held = [p for group in config.build(model).param_groups for p in group["params"]]
        assert len(held) == len({id(p) for p in held}) == len(list(model.parameters()))


def test_every_expert_takes_the_step_of_a_matrix_of_its_own() -> None:
    moe = MoE(experts=3, hidden=24)
    config = TransformerConfig(vocabulary=20, width=16, layers=1, attention=GQA(heads=2), mlp=moe)
    model = config.build()
    before = model.blocks[0].mlp.experts.up.weight.detach().clone()
    gradients(model, 0)
    gradient = model.blocks[0].mlp.experts.up.weight.grad.clone()
    gradient[1] = model.blocks[0].mlp.experts.up.weight.grad[1] = 0  # to which no token went
    Muon(rate=0.1, weight_decay=0.0).build(model).step()
    step = before - model.blocks[0].mlp.experts.up.weight.detach()
    for number in range(3):
        wanted = orthogonalize(gradient[number] * (1 - 0.95**2)) * 0.1 * 0.2 * 24**0.5
        torch.testing.assert_close(step[number], wanted, atol=1e-6, rtol=1e-4)
    assert step[1].abs().max() == 0


def test_an_expert_without_tokens_rests() -> None:
    """Its momentum fades; turned, it would move as far as ever."""
    config = TransformerConfig(
        vocabulary=20, width=16, layers=1, attention=GQA(heads=2), mlp=MoE(experts=3, hidden=24)
    )
    model = config.build()
    weight = model.blocks[0].mlp.experts.up.weight
    optimizer = Muon(rate=0.1, weight_decay=0.0).build(model)
    gradients(model, 0)
    optimizer.step()
    before = weight.detach().clone()
    gradients(model, 1)
    weight.grad[1] = 0
    optimizer.step()
    moved = (weight.detach() - before).abs().amax((1, 2))
    assert moved[1] == 0
    assert moved[[0, 2]].min() > 0


def test_adapters_take_adamw_steps(model: Transformer) -> None:
    LoRA(rank=2).apply(model, 0)
    optimizer = Muon().build(model)
    assert not any(isinstance(group["rule"], MuonRule) for group in optimizer.param_groups)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize("config", [AdamW(rate=1e-3), Muon(rate=2e-3, adamw_ratio=0.5)])
def test_b_of_an_adapter_has_a_multiple_of_the_rate(model: Transformer, config) -> None:
    LoRA(rank=2, lora_plus_ratio=16, dora=True, train_also="embed").apply(model, 0)
    optimizer = config.build(model)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert optimizer.param_groups[0]["lr"] == 1e-3  # the rate that is told
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            wanted = 16e-3 if name.endswith(".b") else 1e-3
            assert rates[id(parameter)] == pytest.approx(wanted), name


def test_a_step_of_b_is_a_multiple_of_that_of_a(model: Transformer) -> None:
    """The first step of AdamW moves every number by the rate."""
    LoRA(rank=2, lora_plus_ratio=4).apply(model, 0)
    optimizer = AdamW(rate=1e-3, weight_decay=0).build(model)
    layer = model.blocks[0].mlp.up
    before = [layer.a.detach().clone(), layer.b.detach().clone()]
    layer.a.grad, layer.b.grad = torch.ones_like(layer.a), torch.ones_like(layer.b)
    optimizer.step()
    torch.testing.assert_close(before[0] - layer.a, torch.full_like(layer.a, 1e-3))
    torch.testing.assert_close(before[1] - layer.b, torch.full_like(layer.b, 4e-3))


def test_biases_of_experts_do_not_decay_and_selection_biases_are_not_optimised() -> None:
    moe = MoE(experts=4, hidden=8, bias=True, selection_bias=True)
    config = TransformerConfig(
        vocabulary=23, width=16, layers=1, attention=(GQA(heads=2),), mlp=(moe,)
    )
    built = config.build(0)
    groups = AdamW(weight_decay=0.1).build(built).param_groups
    assert {group["weight_decay"] for group in groups} == {0.1, 0.0}
    vectors = {p for group in groups if not group["weight_decay"] for p in group["params"]}
    named = dict(built.named_parameters())
    kept = {name for name, p in named.items() if p in vectors}
    assert kept == {name for name in named if name.endswith("bias") or "norm" in name}
    assert "blocks.0.mlp.experts.up.bias" in kept
    assert not any("selection" in name for name in named)


@pytest.mark.parametrize("kind", [AdamW, Muon])
@pytest.mark.parametrize("adapter", [False, True])
def test_one_rate_moves_every_parameter(kind: type, adapter: bool, model: Transformer) -> None:
    """A hundredth of the rate: a hundredth of every step."""
    if adapter:
        LoRA(rank=2, lora_plus_ratio=4, train_also="embed").apply(model, 0)
    moved = []
    for rate in (1e-2, 1e-4):
        other = copy.deepcopy(model)
        before = {name: p.detach().clone() for name, p in other.named_parameters()}
        optimizer = kind(rate=rate, weight_decay=0.0).build(other)
        gradients(other, 0)
        optimizer.step()
        changes = {name: float((p - before[name]).norm()) for name, p in other.named_parameters()}
        moved.append({n: c for n, c in changes.items() if c})
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert moved[0].keys() == moved[1].keys() == trained
    for name, change in moved[0].items():
        assert moved[1][name] == pytest.approx(change / 100, rel=0.02), name
