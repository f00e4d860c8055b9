"""Optimizers against torch's own, bitsandbytes, schedulefree, or their equations."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from culm.optim import blockwise
from culm.optim.adafactor import Adafactor
from culm.optim.adamw import AdamWRule
from culm.optim.adamw8bit import AdamW8bit, AdamW8bitRule
from culm.optim.galore import GaLoreRule, strongest
from culm.optim.lion import Lion
from culm.optim.optimizer import OptimizerConfig
from culm.optim.rule import Rule, RuleOptimizer
from culm.optim.schedule_free import ScheduleFree, ScheduleFreeRule
from culm.optim.sgd import SGD

CPU = torch.device("cpu")


def plain(seed: int = 0, rows: int = 12, columns: int = 7) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(columns, rows), nn.Linear(rows, 5))


def push(module: nn.Module, step: int) -> None:
    chance = torch.Generator().manual_seed(step)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=chance)


def assert_same(ours: OptimizerConfig, theirs: Callable[..., torch.optim.Optimizer], **settings):
    """All parameters of a module in one group, as torch has them by default."""
    one, other = plain(), plain()
    optimizer = ours.build(one)
    for group in optimizer.param_groups:  # torch knows no vectors without a decay
        group["weight_decay"] = settings.get("weight_decay", 0.0)
    reference = theirs(other.parameters(), **settings)
    for step in range(6):
        for module, rule in ((one, optimizer), (other, reference)):
            push(module, step)
            rule.step()
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=2e-7, rtol=2e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_sgd_is_that_of_torch(momentum: float, decay: float) -> None:
    config = SGD(rate=0.1, momentum=momentum, weight_decay=decay)
    assert_same(config, torch.optim.SGD, lr=0.1, momentum=momentum, weight_decay=decay)
    if momentum:
        config = config.model_copy(update={"nesterov": True})
        assert_same(
            config, torch.optim.SGD, lr=0.1, momentum=momentum, weight_decay=decay, nesterov=True
        )


@pytest.mark.parametrize("rate", [1e-2, 1.0])
def test_adafactor_is_that_of_torch(rate: float) -> None:
    config = Adafactor(rate=rate, weight_decay=0.1)
    assert_same(config, torch.optim.Adafactor, lr=rate, weight_decay=0.1)


def test_lion_takes_signs_of_its_momentum() -> None:
    weight = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
    module = nn.Module()
    module.weight = weight
    optimizer = Lion(rate=0.1, betas=(0.5, 0.9), weight_decay=1.0).build(module)
    for group in optimizer.param_groups:
        group["weight_decay"] = 1.0
    weight.grad = torch.tensor([1.0, -3.0, 0.0])
    optimizer.step()  # sign of half the gradient; w (1 - 0.1) - 0.1 sign
    torch.testing.assert_close(weight.data, torch.tensor([0.8, -1.7, 0.45]))
    weight.grad = torch.tensor([-0.05, 0.2, -1.0])
    optimizer.step()  # momentum (0.1, -0.3, 0): halves with the gradient: (0.025, -0.05, -0.5)
    torch.testing.assert_close(weight.data, torch.tensor([0.62, -1.43, 0.505]))
    torch.testing.assert_close(
        optimizer.state[weight]["momentum"], torch.tensor([0.085, -0.25, -0.1])
    )


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_schedule_free_is_that_of_its_authors(decay: float) -> None:
    schedulefree = pytest.importorskip("schedulefree")
    one, other = plain(), plain()
    ours = ScheduleFree(rate=0.01, betas=(0.9, 0.99), weight_decay=decay).build(one)
    for group in ours.param_groups:
        group["weight_decay"] = decay
    theirs = schedulefree.AdamWScheduleFree(
        other.parameters(), lr=0.01, betas=(0.9, 0.99), weight_decay=decay
    )
    theirs.train()
    for step in range(8):
        for module, optimizer in ((one, ours), (other, theirs)):
            push(module, step)
            optimizer.step()
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    theirs.eval()
    with ours.averaged():
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-5)


def test_schedule_free_evaluates_the_mean_of_its_steps() -> None:
    """At a constant rate x is the plain mean of all z."""
    module = plain()
    optimizer = ScheduleFree(rate=0.01, betas=(0.8, 0.99)).build(module)
    parameter, seen = next(module.parameters()), list[Tensor]()
    for step in range(5):
        push(module, step)
        optimizer.step()
        seen.append(optimizer.state[parameter]["z"].clone())
    shown = ScheduleFreeRule((0.8, 0.99)).averaged(parameter, optimizer.state[parameter])
    torch.testing.assert_close(shown, torch.stack(seen).mean(0), atol=1e-6, rtol=1e-5)


# -- 8 bits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [True, False])
def test_the_map_is_that_of_bitsandbytes(signed: bool) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    theirs = functional.create_dynamic_map(signed=signed)
    torch.testing.assert_close(blockwise.dynamic_map(signed, CPU), theirs, atol=1e-7, rtol=0)


@pytest.mark.parametrize("signed", [True, False])
def test_values_are_rounded_to_the_nearest_code(signed: bool) -> None:
    chance = torch.Generator().manual_seed(0)
    values = torch.randn(6, 3, 100, generator=chance)
    values = (values if signed else values.abs()) * torch.logspace(-6, 2, 6)[:, None, None]
    values[2] = 0
    values[3, 0, :2] = 1e-12
    parameter = nn.Parameter(torch.empty(6, 3, 100))
    codes, scales = blockwise.zeros(parameter)
    assert scales.shape == (6, 2)
    assert blockwise.dequantize(codes, scales, signed).abs().max() == 0
    blockwise.quantize(values, codes, scales, signed)
    back = blockwise.dequantize(codes, scales, signed)
    known = blockwise.dynamic_map(signed, CPU)
    for row, got, scale in zip(values.flatten(1), back.flatten(1), scales, strict=True):
        for part, block in enumerate(row.split(blockwise.BLOCK)):
            usable = known if signed else known[1:]  # what is not 0 does not become 0
            best = (block[:, None] - usable * scale[part]).abs().min(1).values
            error = (block - got.split(blockwise.BLOCK)[part]).abs()
            torch.testing.assert_close(error, best, atol=1e-9 + 1e-6 * float(scale[part]), rtol=0)
    assert (back[2] == 0).all()


def one_matrix(rule: Rule, rows: int = 64, columns: int = 256) -> RuleOptimizer:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(rows, columns))
    group = {"params": [weight], "rule": rule, "lr": 0.01, "weight_decay": 0.1, "eps": 1e-8}
    return RuleOptimizer([group])


def weights_after(optimizer: torch.optim.Optimizer, decades: int = 0, steps: int = 20) -> Tensor:
    """decades: powers of ten between the smallest and the largest gradients of a row."""
    (weight,) = optimizer.param_groups[0]["params"]
    chance = torch.Generator().manual_seed(1)
    size = torch.logspace(-decades, 0, weight.shape[1])
    for _ in range(steps):
        weight.grad = torch.randn(weight.shape, generator=chance) * size
        optimizer.step()
    return weight.detach().clone()


@pytest.mark.parametrize("decades", [0, 2, 4])
def test_eight_bits_are_at_least_as_near_to_adamw_as_those_of_bitsandbytes(decades: int) -> None:
    """Squares are never rounded to 0 here, as small ones are there."""
    optim = pytest.importorskip("bitsandbytes.optim")
    torch.manual_seed(0)
    other = nn.Parameter(torch.randn(64, 256))
    theirs = optim.AdamW8bit(
        [other], lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, min_8bit_size=1
    )
    exact = weights_after(one_matrix(AdamWRule((0.9, 0.95))), decades)
    one = weights_after(one_matrix(AdamW8bitRule((0.9, 0.95))), decades)
    two = weights_after(theirs, decades)
    assert (one - exact).norm() < 1.02 * (two - exact).norm()
    if decades == 0:
        assert (one - two).norm() < 0.2 * (two - exact).norm()


def test_eight_bits_stay_near_adamw_at_a_quarter_of_its_memory() -> None:
    ours, exact = one_matrix(AdamW8bitRule((0.9, 0.95))), one_matrix(AdamWRule((0.9, 0.95)))
    torch.manual_seed(0)
    start = torch.randn(64, 256)
    one, two = weights_after(ours), weights_after(exact)
    assert (one - two).norm() < 0.02 * (two - start).norm()
    held = [sum(v.nbytes for s in o.state.values() for v in s.values()) for o in (ours, exact)]
    assert held == [2 * (64 * 256 + 64 * 4) + 4, 2 * 64 * 256 * 4 + 4]


def test_a_small_square_in_the_block_of_a_large_one_makes_no_leap() -> None:
    """Gradients of a row that differ by 10^4, whose squares differ by 10^8."""
    optimizer = one_matrix(AdamW8bitRule((0.9, 0.95)))
    (weight,) = optimizer.param_groups[0]["params"]
    start = weight.detach().clone()
    assert (weights_after(optimizer, decades=4) - start).abs().max() < 20 * 0.01 * 3


def test_only_large_hidden_matrices_take_eight_bits() -> None:
    from culm.model.attention.gqa import GQA
    from culm.model.transformer import TransformerConfig

    config = TransformerConfig(
        vocabulary=300, width=64, layers=1, context=8, attention=(GQA(heads=2, kv_heads=1),)
    )
    model = config.build(0)
    push(model, 0)
    optimizer = AdamW8bit().build(model)
    optimizer.step()
    packed = {
        name
        for name, parameter in model.named_parameters()
        if optimizer.state[parameter]["exp_avg"].dtype == torch.uint8
    }
    assert "blocks.0.mlp.up.weight" in packed
    assert "blocks.0.attention.k.weight" not in packed  # 32 x 64
    assert not any(name.startswith(("embed", "head", "norm")) for name in packed)


# -- GaLore -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (3, 8, 20)])
def test_galore_is_adamw_in_projected_coordinates(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(shape))
    rule = GaLoreRule(AdamWRule((0.9, 0.95)), rank=4, refresh_steps=3, scale=0.25)
    group = {"params": [weight], "rule": rule, "lr": 0.01, "weight_decay": 0.1, "eps": 1e-8}
    optimizer, expected = RuleOptimizer([group]), weight.detach().clone()
    low: nn.Parameter | None = None
    basis = torch.zeros(1)
    wide = shape[-2] <= shape[-1]
    for step in range(7):
        weight.grad = torch.randn(shape)
        if step % 3 == 0:
            new = strongest(weight.grad if wide else weight.grad.mT, 4)
            same = (new * basis).sum(-2, keepdim=True) >= 0
            basis = torch.where(same, new, -new)
        projected = basis.mT @ weight.grad if wide else weight.grad @ basis
        if low is None:
            low = nn.Parameter(torch.zeros_like(projected))
            adam = torch.optim.AdamW([low], lr=0.01, betas=(0.9, 0.95), weight_decay=0.0)
        before = low.detach().clone()
        low.grad = projected
        adam.step()
        change = low.detach() - before
        expected = expected * (1 - 0.01 * 0.1)
        expected = expected + 0.25 * (basis @ change if wide else change @ basis.mT)
        optimizer.step()
    torch.testing.assert_close(weight.detach(), expected, atol=1e-5, rtol=1e-4)


def test_an_expert_that_reads_nothing_keeps_its_vectors_or_waits() -> None:
    """Two experts; the second one has no gradient when the vectors are computed."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(2, 16, 32))
    rule = GaLoreRule(AdamWRule((0.9, 0.95)), rank=4, refresh_steps=100, scale=1.0)
    group = {"params": [weight], "rule": rule, "lr": 0.01, "weight_decay": 0.0, "eps": 1e-8}
    optimizer, start = RuleOptimizer([group]), weight.detach().clone()
    for step in range(6):
        weight.grad = torch.randn(2, 16, 32)
        if step == 0:
            weight.grad[1] = 0
        optimizer.step()
        if step == 0:
            assert torch.equal(weight[1], start[1])
    moved = (weight.detach() - start).abs().amax(-1) > 0
    assert moved.all()
    basis = optimizer.state[weight]["projection"].clone()
    optimizer.state[weight]["step"].fill_(100)
    weight.grad = torch.randn(2, 16, 32)
    weight.grad[1] = 0
    optimizer.step()
    found = optimizer.state[weight]["projection"]
    assert torch.equal(found[1], basis[1])
    assert not torch.equal(found[0], basis[0])


def test_galore_needs_the_memory_of_its_rank() -> None:
    rows, columns, rank = 64, 256, 8
    bytes_of = {}
    for name, inner in (("32", AdamWRule((0.9, 0.95))), ("8", AdamW8bitRule((0.9, 0.95)))):
        optimizer = one_matrix(GaLoreRule(inner, rank, 200, 0.25))
        weights_after(optimizer, steps=1)
        bytes_of[name] = sum(v.nbytes for s in optimizer.state.values() for v in s.values())
    assert bytes_of["32"] == 4 * (2 * rank * columns + rows * rank) + 4
    assert bytes_of["8"] == 2 * (rank * columns + 4 * rank) + 4 * rows * rank + 4


def test_the_strongest_directions() -> None:
    torch.manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, 3)).Q for n in (10, 20))
    matrix = left @ torch.diag(torch.tensor([3.0, 2.0, 1.0])) @ right.mT
    found = strongest(matrix, 2)
    torch.testing.assert_close((found.mT @ left).abs(), torch.eye(2, 3), atol=1e-5, rtol=0)
