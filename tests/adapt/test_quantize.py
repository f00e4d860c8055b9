"""Quantised layers against a matmul with their dequantised weights."""

import pytest
import torch

from culm.adapt.lora import plain
from culm.adapt.quantize.fp8 import FP8, FP8Linear
from culm.adapt.quantize.int4 import Int4, Int4Linear, codes_of, grid, values_of
from culm.adapt.quantize.int8 import Int8, Int8Linear
from culm.adapt.quantize.linear import QuantizedLinear, is_quantized
from culm.adapt.quantize.nf4 import LEVELS, NF4, NF4Linear

SHAPES = [(64, 64), (96, 48), (160, 33), (128, 512)]


def linear(inputs: int, outputs: int, bias: bool = True):
    torch.manual_seed(inputs + outputs)
    return plain(torch.randn(outputs, inputs), torch.randn(outputs) if bias else None)


KINDS = {"int8": Int8(), "int4": Int4(), "nf4": NF4(block=32), "fp8": FP8()}


def quantized(kind: str, layer) -> QuantizedLinear:
    return KINDS[kind].round(layer)


@pytest.mark.parametrize("kind", KINDS)
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


@pytest.mark.parametrize("kind", KINDS)
def test_quantizing_twice_changes_nothing(kind):
    once = quantized(kind, linear(64, 32))
    twice = quantized(kind, plain(once.dequantize(), None))
    assert (once.dequantize() - twice.dequantize()).abs().max() < 2e-2 * once.dequantize().std()


@pytest.mark.parametrize("group", [32, 64, 128])
def test_codes_of_their_own_values_are_the_same(group):
    weight = linear(256, 32).weight.detach().unflatten(1, (-1, group))
    scale, zero = (part[..., None] for part in grid(weight))
    codes = codes_of(weight, scale, zero)
    assert torch.equal(codes_of(values_of(codes, scale, zero), scale, zero), codes)


@pytest.mark.parametrize(("inputs", "group"), [(96, 32), (256, 64), (384, 128)])
def test_dense_int4_multiplies_by_its_values_rounded_to_bf16(inputs, group):
    layer = Int4Linear.from_linear(linear(inputs, 33, bias=False), group)
    eye = torch.eye(inputs, dtype=torch.bfloat16)
    assert torch.equal(layer.dense(eye).t(), layer.dequantize().bfloat16())


def test_nf4_levels_are_quantiles_of_the_normal_distribution():
    offset, quantile = 0.9677083, torch.distributions.Normal(0.0, 1.0).icdf
    above = quantile(torch.linspace(offset, 0.5, 9, dtype=torch.float64)[:-1])
    below = -quantile(torch.linspace(offset, 0.5, 8, dtype=torch.float64)[:-1])
    levels = torch.cat((above, below, torch.zeros(1, dtype=torch.float64))).sort().values
    levels /= levels.abs().max()
    assert (levels - torch.tensor(LEVELS, dtype=torch.float64)).abs().max() < 5e-7


@pytest.mark.parametrize("block", [32, 64, 128])
def test_nf4_takes_the_nearest_level(block):
    source = linear(256, 96)
    layer = NF4Linear.from_linear(source, block)
    blocks = source.weight.detach().view(-1, block)
    absmax = layer.absmax()
    spread = blocks.abs().amax(1) - blocks.abs().amax(1).mean()
    assert ((absmax - blocks.abs().amax(1)).abs() <= 0.5 * spread.abs().max() / 127 + 1e-6).all()
    distance = (blocks[..., None] / absmax[:, None, None] - torch.tensor(LEVELS)).abs().amin(-1)
    error = (layer.dequantize().view(-1, block) - blocks).abs() / absmax[:, None]
    assert torch.allclose(error, distance, atol=1e-6)


def test_nf4_of_its_own_levels_is_exact():
    codes = torch.arange(16).repeat(64, 8)  # every block has the same absmax
    source = plain(0.3 * torch.tensor(LEVELS)[codes], None)
    layer = NF4Linear.from_linear(source, 64)
    assert (layer.dequantize() - source.weight).abs().max() < 1e-7
    assert torch.equal(NF4Linear.from_linear(plain(layer.dequantize(), None)).weight, layer.weight)


def test_nf4_takes_about_four_bits():
    layer = NF4Linear.from_linear(linear(1024, 1024, bias=False))
    bits = 8 * sum(t.numel() * t.element_size() for t in layer.state_dict().values()) / 1024**2
    assert bits == pytest.approx(4.127, abs=1e-3)


def test_fp8_keeps_three_bits_of_mantissa():
    source = linear(256, 48)
    layer = FP8Linear.from_linear(source)
    error = (layer.dequantize() - source.weight).abs()
    # Half of the last bit, and below 2^-6 of e4m3, where numbers have no exponent, half a step.
    assert (error <= source.weight.abs() / 16 + layer.scale[:, None] * 2**-10 + 1e-9).all()
    assert torch.allclose(layer.dequantize().abs().amax(1), source.weight.abs().amax(1))
    assert layer.weight_bytes == 48 * 256 + 4 * 48


def test_fp8_product_of_rows_where_torch_has_it():
    """What a GPU computes; torch's CPU operator does the same, slowly."""
    layer, x = FP8Linear.from_linear(linear(256, 48, bias=False)), torch.randn(16, 256).bfloat16()
    try:
        out = layer.scaled(x)
    except (RuntimeError, NotImplementedError):
        pytest.skip("no fp8 product in this torch")
    exact = layer.dense(x.float())
    assert (out.float() - exact).norm() < 0.05 * exact.norm()
    assert torch.equal(layer(x), layer.dense(x))  # on a CPU it is not taken


def test_zero_weights_stay_zero():
    zeros = plain(torch.zeros(32, 64), None)
    assert not Int8Linear.from_linear(zeros).dequantize().any()
    assert not Int4Linear.from_linear(zeros).dequantize().any()
    assert not NF4Linear.from_linear(zeros).dequantize().any()
    assert not FP8Linear.from_linear(zeros).dequantize().any()


@pytest.mark.parametrize("kind", KINDS)
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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tiny, value):
    model = tiny()
    model.blocks[1].mlp.up.weight.data[2, 3] = value
    with pytest.raises(ValueError, match=r"model: blocks\.1\.mlp\.up contains NaN or infinity"):
        Int4().apply(model)
    assert not is_quantized(model)


def test_group_that_does_not_divide(tiny):
    with pytest.raises(ValueError, match=r"group: 128 does not divide the 64 inputs of blocks\.0"):
        Int4(group=128).apply(tiny())
    with pytest.raises(ValueError, match=r"block: 64 does not divide the 96 inputs of blocks\.0"):
        NF4().apply(tiny())
