"""Adapters: fresh == base, merged == adapted, and only A and B learn."""

import pytest
import torch

from culm.adapt.lora import LoRA, LoRALinear, merge
from culm.adapt.quantize.int4 import Int4
from culm.adapt.quantize.int8 import Int8
from culm.adapt.quantize.nf4 import NF4

TOKENS = torch.arange(24).view(2, 12)


def stirred(model):
    """The model with B moved away from zero."""
    for module in model.modules():
        if isinstance(module, LoRALinear):
            torch.nn.init.normal_(module.b, std=0.1, generator=torch.Generator().manual_seed(3))
    return model


@pytest.mark.parametrize("quantizer", [None, Int8(), Int4(), NF4(block=32)])
def test_fresh_adapter_changes_nothing(tiny, quantizer):
    model = tiny()
    if quantizer:
        quantizer.apply(model)
    before = model(TOKENS)
    assert LoRA(dropout=0.1).apply(model, seed=0) == 14
    assert torch.equal(model.eval()(TOKENS), before)


def test_only_a_and_b_learn(tiny):
    model = tiny()
    base = {name: p.detach().clone() for name, p in model.named_parameters()}
    LoRA(rank=4).apply(model, seed=0)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(name.endswith((".a", ".b")) for name in trained)
    layers = [m for m in model.modules() if isinstance(m, LoRALinear)]
    sizes = [4 * (m.base.in_features + m.base.out_features) for m in layers]
    assert sum(p.numel() for p in trained.values()) == sum(sizes)

    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    model(TOKENS).pow(2).sum().backward()
    assert not any(m.a.grad.any() for m in layers)  # B is still zero
    assert all(m.b.grad.any() for m in layers)
    optimizer.step()
    for name, value in model.named_parameters():
        plain = name.replace(".base.", ".")
        assert name in trained or torch.equal(value, base[plain])


@pytest.mark.parametrize("rslora", [False, True])
def test_merged_equals_adapted(tiny, rslora):
    model = tiny()
    LoRA(rslora=rslora, targets=("blocks.*", "head")).apply(model, seed=0)
    expected = stirred(model)(TOKENS)
    assert merge(model) == 15
    assert (model(TOKENS) - expected).abs().max() < 1e-5
    assert not any(isinstance(m, LoRALinear) for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_merging_the_tied_head_unties_it(tiny):
    model = tiny(tied=True)
    LoRA(targets="head").apply(model, seed=0)
    embedding = model.embed.weight.detach().clone()
    merge(stirred(model))
    assert not model.config.tied
    assert torch.equal(model.embed.weight, embedding)


@pytest.mark.parametrize("quantizer", [Int8(), Int4(), NF4(block=32)])
def test_merging_a_quantized_base_multiplies_it_out(tiny, quantizer):
    model = tiny()
    quantizer.apply(model)
    LoRA().apply(model, seed=0)
    expected = stirred(model)(TOKENS)
    merge(model)
    assert (model(TOKENS) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("quantizer", [Int8(), Int4(), NF4(block=32)])
def test_gradients_pass_a_quantized_base(tiny, quantizer):
    model = tiny()
    quantizer.apply(model)
    LoRA().apply(model, seed=0)
    stirred(model)(TOKENS).pow(2).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)


def test_scale():
    assert LoRA(rank=16, alpha=32).scale == 2
    assert LoRA(rank=16, alpha=32, rslora=True).scale == 8


def test_drawn_by_name_from_the_seed(tiny):
    one, same, other = tiny(), tiny(), tiny()
    LoRA().apply(one, seed=5)
    LoRA(targets="blocks.1.mlp.up").apply(same, seed=5)
    LoRA().apply(other, seed=6)
    one, same, other = (model.get_parameter("blocks.1.mlp.up.a") for model in (one, same, other))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.abs().max() <= 64**-0.5
