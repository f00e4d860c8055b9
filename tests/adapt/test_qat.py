"""Quantisation-aware training: exact in conversion, straight-through in the gradient."""

from copy import deepcopy

import pytest
import torch

from culm.adapt.lora import plain
from culm.adapt.quantize.int4 import Int4
from culm.adapt.quantize.int8 import Int8
from culm.adapt.quantize.linear import QuantizedLinear, is_quantized
from culm.adapt.quantize.qat import FakeQuantizedLinear, convert, fake_quantize
from culm.adapt.quantize.w8a8 import W8A8
from culm.config import SettingError, parse
from culm.model.linear import Linear
from culm.run.train_settings import TrainConfig

KINDS = [Int8(), Int4(), Int4(targets=("blocks.*", "head")), W8A8()]
IDS = ["int8", "int4", "int4-head", "w8a8"]


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 96, (12, 32), generator=torch.Generator().manual_seed(0))


def linear(inputs: int = 64, outputs: int = 32):
    torch.manual_seed(0)
    return plain(torch.randn(outputs, inputs), torch.randn(outputs))


def loss_of(model, tokens):
    return -model.logprobs(tokens[:, :-1], tokens[:, 1:]).mean()


def learn(model, tokens, steps: int, rate: float = 0.01):
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(steps):
        loss = loss_of(model, tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


# -- one layer --------------------------------------------------------------------------------


@pytest.mark.parametrize("quantizer", KINDS, ids=IDS)
def test_weights_are_exactly_those_of_the_quantised_layer(quantizer):
    layer = linear()
    values, inside = quantizer.rounded(layer.weight)
    assert torch.equal(values, quantizer.round(layer).dequantize())
    assert inside.float().mean() > 0.95


@pytest.mark.parametrize("quantizer", KINDS, ids=IDS)
def test_a_converted_layer_gives_the_same(quantizer):
    layer, x = linear(), torch.randn(5, 64)
    before = FakeQuantizedLinear(layer, quantizer)(x)
    assert (quantizer.round(layer)(x) - before).abs().max() <= 1e-6 * before.abs().max()


@pytest.mark.parametrize("quantizer", KINDS, ids=IDS)
def test_gradient_is_straight_through_where_in_range(quantizer):
    layer = linear()
    fake = FakeQuantizedLinear(layer, quantizer)
    x = torch.randn(5, 64, requires_grad=True)
    out, upstream = fake(x), torch.randn(5, 32)
    out.backward(upstream)
    values, inside = quantizer.rounded(layer.weight)
    of_weight = upstream.t() @ quantizer.read(x.detach())
    assert torch.allclose(layer.weight.grad, of_weight * inside, atol=1e-5)
    assert torch.allclose(x.grad, upstream @ values, atol=1e-5)
    assert torch.allclose(layer.bias.grad, upstream.sum(0))


def test_gradient_is_masked_outside_of_the_range():
    """-7.5 steps below zero round to 8, so that the greatest weight is 15.5 above: past the end."""
    weight = torch.zeros(1, 32)
    weight[0, 0], weight[0, 1] = -7.5, 7.5
    layer = plain(weight, None)
    values, inside = Int4().rounded(layer.weight)
    assert inside.tolist() == [[True, False, *[True] * 30]]
    FakeQuantizedLinear(layer, Int4())(torch.ones(1, 32)).backward()
    assert torch.equal(layer.weight.grad, inside.float())
    assert float(values[0, 1]) == 7


# -- a model ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("quantizer", KINDS, ids=IDS)
def test_converted_is_what_was_trained(tiny, tokens, quantizer, tied):
    model = tiny(tied=tied)
    assert fake_quantize(model, [quantizer]) == (15 if "head" in quantizer.targets else 14)
    learn(model, tokens, 3)
    before, plain_weights = model(tokens), deepcopy(model.state_dict())
    assert not is_quantized(model)
    assert convert(model) == (15 if "head" in quantizer.targets else 14)
    assert is_quantized(model)
    assert not any(isinstance(m, FakeQuantizedLinear) for m in model.modules())
    difference = (model(tokens) - before).abs().max(-1).values
    # One token in ten may hold an activation that lies between two steps and falls the other way.
    sure = difference.flatten().sort().values[: 9 * difference.numel() // 10]
    found = sure if quantizer.kind == "w8a8" else difference
    assert found.max() <= 1e-5 * before.abs().max().clamp_min(1)
    assert model.config.tied == (tied and "head" not in quantizer.targets)
    # And it is the rounding to nearest of the weights that were kept.
    again = tiny(tied=tied)
    again.load_state_dict(plain_weights)
    quantizer.apply(again)
    assert torch.equal(again(tokens), model(tokens))


def test_names_and_parameters_stay(tiny):
    model = tiny(tied=True)
    parameters, names = set(model.parameters()), list(model.state_dict())
    fake_quantize(model, [Int8()])
    assert set(model.parameters()) == parameters
    assert list(model.state_dict()) == names
    assert model.head.weight is model.embed.weight
    assert all(p.requires_grad for p in model.parameters())


def test_kinds_by_pattern(tiny, tokens):
    model = tiny(tied=False)
    fake_quantize(model, [Int8(targets=("blocks.*.mlp.down",)), Int4(targets="blocks.0.*")])
    learn(model, tokens, 1)
    convert(model)
    kinds = [type(m).__name__ for m in model.blocks[0].mlp.children()]
    assert kinds == ["Int4Linear", "Int4Linear", "Int8Linear"]
    assert type(model.blocks[1].attention.q) is type(model.head) is Linear


def test_training_wins_back_most_of_what_rounding_loses(tiny, tokens):
    """At int4, against the same steps without rounding and rounded afterwards."""
    start = tiny(tied=False)
    learn(start, tokens, 60)
    for block in start.blocks:  # weights with outliers, which four bits cannot follow
        for layer in (block.mlp.up, block.attention.v):
            layer.weight.data[:, ::32] *= 6
    plainly, aware = deepcopy(start), deepcopy(start)
    learn(plainly, tokens, 30, 1e-3)
    fake_quantize(aware, [Int4(targets=("blocks.*", "head"))])
    learn(aware, tokens, 30, 1e-3)
    with torch.no_grad():
        whole = loss_of(plainly, tokens)
        Int4(targets=("blocks.*", "head")).apply(plainly)
        convert(aware)
        rounded, trained = loss_of(plainly, tokens), loss_of(aware, tokens)
    assert trained < rounded
    assert trained - whole < 0.5 * (rounded - whole)


# -- a run ------------------------------------------------------------------------------------


def test_what_a_run_file_may_ask():
    settings = {"steps": 1, "qat": ["int8", {"kind": "int4", "group": 64}]}
    assert parse(TrainConfig, settings, "train").qat == (Int8(), Int4(group=64))
    assert parse(TrainConfig, {"steps": 1, "qat": "w8a8"}, "train").qat == (W8A8(),)
    with pytest.raises(SettingError, match=r"train\.qat\[0\]\.kind: 'nf4' is not one of 'int8'"):
        parse(TrainConfig, {"steps": 1, "qat": "nf4"}, "train")
    with pytest.raises(
        SettingError, match=r"train\.qat: the weights under an adapter are not trained"
    ):
        parse(TrainConfig, {"steps": 1, "qat": "int8", "adapter": "lora"}, "train")


def test_a_group_that_does_not_divide_is_refused_before_training(tiny):
    model = tiny()
    with pytest.raises(ValueError, match=r"group: 128 does not divide the 64 inputs"):
        fake_quantize(model, [Int4(group=128)])
    assert not any(isinstance(m, QuantizedLinear | FakeQuantizedLinear) for m in model.modules())
