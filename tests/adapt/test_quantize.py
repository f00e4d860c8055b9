"""Quantised layers against the product with their weights multiplied out."""

import pytest
import torch

from culm.adapt.lora import plain
from culm.adapt.quantize.int4 import Int4, Int4Linear
from culm.adapt.quantize.int8 import Int8, Int8Linear
from culm.adapt.quantize.linear import QuantizedLinear

SHAPES = [(64, 64), (96, 48), (160, 33), (128, 512)]


def linear(inputs: int, outputs: int, bias: bool = True):
    torch.manual_seed(inputs + outputs)
    return plain(torch.randn(outputs, inputs), torch.randn(outputs) if bias else None)


def quantized(kind: str, layer) -> QuantizedLinear:
    return Int8Linear.from_linear(layer) if kind == "int8" else Int4Linear.from_linear(layer)


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
@pytest.mark.parametrize("rows", [1, 3, 16, 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_dense_product(kind, inputs, outputs, rows, dtype):
    layer = quantized(kind, linear(inputs, outputs))
    x = torch.randn(2, rows, inputs).to(dtype)
    expected = x.float() @ layer.dequantize().t() + layer.bias
    error = (layer(x).float() - expected).abs().max() / expected.abs().max()
    assert error < (1e-6 if dtype == torch.float32 else 8e-3)


def test_int8_rounds_to_half_a_step():
    source = linear(64, 32)
    layer = Int8Linear.from_linear(source)
    scale = layer.scale.float()[:, None]
    assert torch.allclose(scale[:, 0], source.weight.abs().amax(1) / 127, rtol=4e-3)
    assert ((layer.dequantize() - source.weight).abs() <= 0.5 * scale + 1e-6).all()


@pytest.mark.parametrize("group", [32, 64, 128])
def test_int4_rounds_to_half_a_step(group):
    source = linear(256, 32)
    layer = Int4Linear.from_linear(source, group)
    step = layer.scale.float().repeat_interleave(group, 1)
    # Half a step, and what the bf16 rounding of scale and zero adds to it.
    assert ((layer.dequantize() - source.weight).abs() <= 0.56 * step).all()


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantizing_twice_changes_nothing(kind):
    once = quantized(kind, linear(64, 32))
    twice = quantized(kind, plain(once.dequantize(), None))
    assert (once.dequantize() - twice.dequantize()).abs().max() < 2e-2 * once.dequantize().std()


def test_zero_weights_stay_zero():
    zeros = plain(torch.zeros(32, 64), None)
    assert not Int8Linear.from_linear(zeros).dequantize().any()
    assert not Int4Linear.from_linear(zeros).dequantize().any()


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_gradient_reaches_x(kind):
    layer = quantized(kind, linear(64, 32))
    x = torch.randn(3, 64, requires_grad=True)
    layer(x).pow(2).sum().backward()
    y = x.detach().clone().requires_grad_()
    (y @ layer.dequantize().t() + layer.bias).pow(2).sum().backward()
    assert torch.allclose(x.grad, y.grad, rtol=1e-5, atol=1e-4)


def test_quantizers_replace_and_untie(tiny):
    model = tiny(tied=True)
    tokens = torch.arange(12)[None]
    before = model(tokens)
    assert Int8().apply(model) == 15
    assert isinstance(model.head, Int8Linear)
    assert not model.config.tied
    assert (model(tokens) - before).abs().max() < 0.02 * before.abs().max() + 0.02
    assert not any(p.requires_grad for b in model.blocks for p in b.attention.q.parameters())


def test_int4_leaves_the_head(tiny):
    model = tiny(tied=True)
    assert Int4(group=32).apply(model) == 14
    assert model.config.tied


def test_group_that_does_not_divide(tiny):
    with pytest.raises(ValueError, match=r"group: 128 does not divide the 64 inputs of blocks\.0"):
        Int4(group=128).apply(tiny())
