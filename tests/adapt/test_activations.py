"""W8A8 against its definition in fp64, and SmoothQuant against W8A8 without it."""

import pytest
import torch

from culm.adapt.lora import plain
from culm.adapt.quantize import w8a8
from culm.adapt.quantize.calibrate import Calibration, Inputs
from culm.adapt.quantize.fold import fold, foldings
from culm.adapt.quantize.int4 import Int4
from culm.adapt.quantize.int8 import Int8, Int8Linear
from culm.adapt.quantize.method import RTN
from culm.adapt.quantize.smoothquant import SmoothQuant
from culm.adapt.quantize.w8a8 import W8A8, W8A8Linear
from culm.config import SettingError, parse


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 96, (12, 32), generator=torch.Generator().manual_seed(0))


def linear(inputs: int, outputs: int, bias: bool = True):
    torch.manual_seed(inputs + outputs)
    return plain(torch.randn(outputs, inputs), torch.randn(outputs) if bias else None)


def by_definition(layer: W8A8Linear, x: torch.Tensor) -> torch.Tensor:
    x = x.double()
    scale = (x.float().abs().amax(-1, keepdim=True) / 127).double()
    steps = (x.float() / scale.float()).round().double()
    return steps @ layer.weight.double().t() * scale * layer.scale.double() + layer.bias.double()


@pytest.mark.parametrize(("inputs", "outputs"), [(64, 64), (96, 48), (160, 33), (77, 40)])
@pytest.mark.parametrize("rows", [1, 3, 17, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", [True, False])
def test_equals_the_definition(inputs, outputs, rows, dtype, kernel, monkeypatch):
    if not kernel:
        monkeypatch.setattr(w8a8, "_runs", lambda device: False)
    layer = W8A8().round(linear(inputs, outputs))
    x = torch.randn(2, rows, inputs).to(dtype)
    expected = by_definition(layer, x)
    error = (layer(x).double() - expected).abs().max() / expected.abs().max()
    assert layer(x).dtype == dtype
    assert error < (1e-6 if dtype == torch.float32 else 8e-3)


def test_weights_are_those_of_int8():
    source = linear(64, 32)
    one, other = W8A8Linear.from_linear(source), Int8Linear.from_linear(source)
    assert torch.equal(one.weight, other.weight)
    assert torch.equal(one.scale, other.scale)
    assert one.settings == {"kind": "w8a8"}


def test_a_token_does_not_depend_on_others():
    layer, x = W8A8().round(linear(64, 32)), torch.randn(5, 64)
    together = layer(torch.cat((x, 100 * x)))
    for row in range(5):
        assert torch.equal(together[row : row + 1], layer(x[row : row + 1]))


def test_zero_tokens_stay_zero():
    layer = W8A8().round(linear(64, 32, bias=False))
    assert not layer(torch.zeros(3, 64)).any()


def test_gradient_reaches_x():
    layer, x = W8A8().round(linear(64, 32)), torch.randn(3, 64, requires_grad=True)
    layer(x).sum().backward()
    assert torch.allclose(x.grad, layer.dequantize().sum(0).expand(3, -1), atol=1e-4)


# -- SmoothQuant ------------------------------------------------------------------------------


def spiked(model):
    """The model with a few channels, the same in every norm, that are far greater than others."""
    for block in model.blocks:
        for norm in (block.attention_norm, block.mlp_norm):
            norm.weight.data[::16] *= 60
    return model


def test_scale_is_that_of_the_paper():
    x, weights = torch.randn(100, 8) * torch.arange(1, 9), [torch.randn(4, 8), torch.randn(6, 8)]
    inputs = Inputs(x.t() @ x / 100, x.abs().mean(0), x.abs().amax(0))
    of_weights = torch.cat(weights).abs().amax(0)
    scale = SmoothQuant().scale(weights, inputs)
    assert torch.allclose(scale, (x.abs().amax(0) / of_weights).sqrt())
    # Half of the way: both sides have the same range.
    assert torch.allclose((x / scale).abs().amax(0), of_weights * scale)
    assert torch.allclose(SmoothQuant(strength=1).scale(weights, inputs), x.abs().amax(0))


def test_smoothing_changes_no_output(tiny, tokens):
    model = spiked(tiny())
    before, calibration = model(tokens), Calibration(model, tokens)
    for _, block in calibration:
        names = ["attention.q", "mlp.gate"]
        measured = calibration.measure(block, names)
        for source, readers in foldings(block, calibration.trace(block)):
            if readers[0] in names:
                weights = [block.get_submodule(name).weight for name in readers]
                fold(block, source, readers, SmoothQuant().scale(weights, measured[readers[0]]))
    assert (model(tokens) - before).abs().max() <= 1e-5 * before.abs().max()


def test_smoothing_halves_the_error_of_outliers(tiny, tokens):
    exact, rounded, weights, smooth = (spiked(tiny()) for _ in range(4))
    assert RTN().apply(rounded, [W8A8(targets="blocks.*")], None) == 14
    assert RTN().apply(weights, [Int8(targets="blocks.*")], None) == 14
    assert SmoothQuant().apply(smooth, [W8A8(targets="blocks.*")], tokens) == 14
    assert all(type(m) is W8A8Linear for m in smooth.blocks[0].mlp.children())
    fresh = torch.randint(0, 96, (8, 32), generator=torch.Generator().manual_seed(9))
    errors = [(m(fresh) - exact(fresh)).pow(2).mean().sqrt() for m in (rounded, smooth, weights)]
    assert errors[1] < 0.5 * errors[0]
    assert errors[1] < 3 * errors[2]


def test_the_head_is_rounded_to_nearest(tiny, tokens):
    model = tiny(tied=False)
    head = W8A8Linear.from_linear(model.head)
    assert SmoothQuant().apply(model, [W8A8()], tokens) == 15
    assert torch.equal(model.head.weight, head.weight)


def test_unsupported_combinations_are_refused(tiny, tokens):
    with pytest.raises(SettingError, match="method: smoothquant finds codes of w8a8, not of int4"):
        SmoothQuant().apply(tiny(), [Int4()], tokens)
    with pytest.raises(SettingError, match="calibrate: smoothquant needs text"):
        SmoothQuant().apply(tiny(), [W8A8()], None)
    with pytest.raises(SettingError, match=r"method\.strength: .* less than or equal to 1"):
        parse(SmoothQuant, {"strength": 1.5}, "method")
