"""Quantised experts: one quantised linear layer per expert."""

import copy

import pytest
import torch

from culm.adapt.lora import LoRA
from culm.adapt.merge import merge_verified
from culm.adapt.quantize import Quantizers
from culm.adapt.quantize.awq import AWQ
from culm.adapt.quantize.calibrate import Calibration
from culm.adapt.quantize.gptq import GPTQ
from culm.adapt.quantize.int4 import Int4Linear
from culm.adapt.quantize.linear import (
    QuantizedGrouped,
    QuantizedLinear,
    expert,
    is_quantized,
    quantized_layers,
)
from culm.adapt.quantize.method import RTN
from culm.config import parse
from culm.convert import native
from culm.convert.weights import plain_weights
from culm.model.linear import GroupedLinear
from culm.tokenizer.bytes import Bytes

KINDS = ("int8", "int4", "nf4", "w8a8", "fp8")
MIXTURE = {"kind": "moe", "experts": 4, "hidden": 128, "shared": 1, "selection_bias": True}
TOKENS = torch.arange(24).view(2, 12)


@pytest.fixture
def mixture(tiny):
    return lambda **more: tiny(vocabulary=262, mlp={**MIXTURE, **more})


def rounded(model, kind):
    RTN().apply(model, parse(Quantizers, kind, "to"), None)
    return model


def dense(model):
    """A model of the weights that the quantised one multiplies with."""
    plain = model.config.build(seed=0)
    plain.load_state_dict(dict(plain_weights(model)), strict=False)
    return plain


@pytest.mark.parametrize("kind", ["int8", "int4", "nf4", "fp8"])
@pytest.mark.parametrize("bias", [False, True])
def test_product_is_that_of_the_rounded_weights(mixture, kind, bias):
    more = {"bias": True, "activation": "clamped", "shared": 0} if bias else {}
    model = rounded(mixture(**more), kind)
    if bias:
        with torch.no_grad():
            model.blocks[0].mlp.experts.up.bias += torch.randn(4, 128)
    torch.testing.assert_close(model(TOKENS), dense(model)(TOKENS), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_experts_are_rounded_and_the_router_never(mixture, kind):
    before, model = mixture(), rounded(mixture(), kind)
    layer = model.blocks[1].mlp.experts.down
    assert isinstance(layer, QuantizedGrouped)
    assert not any(isinstance(module, GroupedLinear) for module in model.modules())
    assert len(quantized_layers(model)) == 2 * (4 + 3 + 3) + (
        kind != "int4" and "head" in names(model)
    )
    router = model.blocks[1].mlp.router
    assert torch.equal(router.weight, before.blocks[1].mlp.router.weight)
    assert not is_quantized(router)
    assert all(isinstance(part, QuantizedLinear) for part in layer.layers)
    assert (model(TOKENS) - before(TOKENS)).abs().max() < 0.1


def names(model):
    return set(quantized_layers(model))


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_experts_without_rows_and_gradients_of_x(mixture, kind):
    layer = rounded(mixture(), kind).blocks[0].mlp.experts.up
    x = torch.randn(7, 64, requires_grad=True)
    ends = torch.tensor([0, 3, 3, 7], dtype=torch.int32)
    out, weight = layer(x, ends), layer.dequantize()
    expected = torch.cat((x[:3] @ weight[1].t(), x[3:] @ weight[3].t()))
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    y = torch.randn_like(out)
    found, wanted = (torch.autograd.grad(o, x, y)[0] for o in (out, expected))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert layer(x[:0], torch.zeros(4, dtype=torch.int32)).shape == (0, 128)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_brings_them_back(mixture, kind, tmp_path):
    model = rounded(mixture(bias=True, activation="clamped", shared=0), kind)
    native.save(model, Bytes(specials=True).build([]), tmp_path / "model")
    again, _ = native.load(tmp_path / "model")
    assert names(again) == names(model)
    assert torch.equal(again(TOKENS), model(TOKENS))


def test_awq_rounds_experts_to_nearest(mixture):
    model, nearest = mixture(), rounded(mixture(), "int4")
    tokens = torch.randint(0, 262, (8, 32), generator=torch.Generator().manual_seed(0))
    AWQ().apply(model, parse(Quantizers, "int4", "to"), tokens)
    assert names(model) == names(nearest)


def test_gptq_solves_every_expert_on_its_own_rows(mixture):
    """On other rows than it was solved on, the outputs of each expert are nearer."""
    model = mixture(scores="sigmoid")
    model.blocks[0].mlp.router.selection[3] = -9.0  # to which no token goes
    tokens, other = torch.randint(0, 262, (2, 64, 64), generator=torch.Generator().manual_seed(0))
    exact = copy.deepcopy(model)
    nearest = rounded(copy.deepcopy(model), "int4")
    assert GPTQ().apply(model, parse(Quantizers, "int4", "to"), tokens) > 0
    assert names(model) == names(nearest)
    for name in ("gate", "up", "down"):
        read = Calibration(exact, other).measure_experts(exact.blocks[0], f"mlp.experts.{name}")
        weight = getattr(exact.blocks[0].mlp.experts, name).weight.detach()
        ours, theirs = (
            getattr(each.blocks[0].mlp.experts, name).dequantize() - weight
            for each in (model, nearest)
        )
        assert [rows > 0 for _, rows in read] == [True, True, True, False]
        assert torch.equal(ours[3], theirs[3])
        for number, (gram, _) in enumerate(read[:3]):
            a, b = (((w[number] @ gram) * w[number]).sum() for w in (ours, theirs))
            assert a < 0.95 * b, name


@pytest.mark.parametrize("activation", ["silu", "relu"])
@pytest.mark.parametrize("rows", [1, 4, 32, 128])
def test_gptq_of_an_expert_that_few_rows_reached(mixture, activation, rows):
    """It is hardly worse than rounding to nearest, also where these rows lit few inputs."""
    model = mixture(experts=1, top_k=1, shared=0, selection_bias=False, activation=activation)
    drawn = torch.Generator().manual_seed(0)
    tokens, other = torch.randint(0, 262, (2, 64, 64), generator=drawn)
    layer, seen = model.blocks[0].mlp.experts.down, []
    hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    model(tokens), model(other)
    hook.remove()
    x, gram = seen[0][torch.randperm(64 * 64, generator=drawn)[:rows]], seen[1].T @ seen[1]
    linear = expert(layer, 0)
    solved = GPTQ().solve(linear, x.T @ x / rows, 32, rows=rows)
    nearest = Int4Linear.from_linear(linear, 32)
    a, b = (
        float(((change @ gram) * change).sum())
        for change in (each.dequantize() - linear.weight for each in (solved, nearest))
    )
    assert a < 1.1 * b


def test_groups_must_divide_the_width_of_an_expert(mixture):
    with pytest.raises(
        ValueError, match=r"group: 64 does not divide the 96 inputs of .*experts\.down"
    ):
        rounded(mixture(shared=0, hidden=96), {"kind": "int4", "group": 64})


@pytest.mark.parametrize("kind", [None, "int4"])
def test_adapters_are_on_layers_that_all_tokens_use(mixture, kind):
    model = mixture() if kind is None else rounded(mixture(), kind)
    assert LoRA(rank=2).apply(model, seed=0) == 2 * (4 + 3)  # attention and the shared expert
    model(TOKENS).sum().backward()
    learned = {name for name, p in model.named_parameters() if p.grad is not None}
    assert learned == {n for n, p in model.named_parameters() if n.endswith((".a", ".b"))}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".b"):
                parameter.add_(0.1)
    merge_verified(model)
    assert kind is None or names(model) >= {f"blocks.0.mlp.experts.{n}" for n in ("gate", "up")}
    torch.testing.assert_close(model(TOKENS), dense(model)(TOKENS), atol=1e-4, rtol=1e-4)
