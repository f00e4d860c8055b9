"""Adapters: fresh == base, merged == adapted, and only A and B learn."""

import pytest
import torch

from culm.adapt.lora import LoRA, LoRALinear, disabled, is_adapter_only
from culm.adapt.merge import merge, merge_verified, unmerge
from culm.adapt.quantize.int4 import Int4
from culm.adapt.quantize.int8 import Int8
from culm.adapt.quantize.nf4 import NF4
from culm.config import SettingError

TOKENS = torch.arange(24).view(2, 12)
QUANTIZERS = [Int8(), Int4(), NF4(block=32)]
BIASED = {"kind": "gqa", "heads": 4, "kv_heads": 2, "bias": True}


def stirred(model):
    """The model with B moved away from zero, and the lengths of rows away from those of W."""
    random = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, LoRALinear):
            torch.nn.init.normal_(module.b, std=0.1, generator=random)
            if module.magnitude is not None:
                scales = 0.5 + torch.rand(module.magnitude.shape, generator=random)
                module.magnitude.data.mul_(scales)
    return model


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quantizer", [None, *QUANTIZERS])
def test_fresh_adapter_changes_nothing(tiny, quantizer, dtype, dora):
    model = tiny(attention=BIASED)
    if quantizer:
        quantizer.apply(model)
    model.dtype = dtype
    before = model(TOKENS)
    assert LoRA(dropout=0.1, dora=dora).apply(model, seed=0) == 14
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


def stirred_biases(model):
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(4))
    return model


@pytest.mark.parametrize("kind", [{}, {"rslora": True}, {"dora": True}])
def test_merged_equals_adapted(tiny, kind):
    model = stirred_biases(tiny(attention=BIASED))
    LoRA(**kind, targets=("blocks.*", "head")).apply(model, seed=0)
    expected = stirred(model)(TOKENS)
    assert merge(model).count == 15
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


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_merging_a_quantized_base_multiplies_it_out(tiny, quantizer, dora):
    model = tiny()
    quantizer.apply(model)
    LoRA(dora=dora).apply(model, seed=0)
    expected = stirred(model)(TOKENS)
    merge(model)
    assert (model(TOKENS) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_gradients_pass_a_quantized_base(tiny, quantizer, dora):
    model = tiny()
    quantizer.apply(model)
    LoRA(dora=dora).apply(model, seed=0)
    stirred(model)(TOKENS).pow(2).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)


def test_scale():
    assert LoRA(rank=16, alpha=32).scale == 2
    assert LoRA(rank=16, alpha=32, rslora=True).scale == 8


def test_initialised_by_name_from_the_seed(tiny):
    one, same, other = tiny(), tiny(), tiny()
    LoRA().apply(one, seed=5)
    LoRA(targets="blocks.1.mlp.up").apply(same, seed=5)
    LoRA().apply(other, seed=6)
    one, same, other = (model.get_parameter("blocks.1.mlp.up.a") for model in (one, same, other))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.abs().max() <= 64**-0.5


def test_a_row_of_zeros_stays_finite_with_dora(tiny):
    model = tiny()
    model.blocks[0].mlp.up.weight.data[3] = 0
    LoRA(dora=True).apply(model, seed=0)
    model(TOKENS).sum().backward()
    assert model(TOKENS).isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_dora_learns_norm_and_direction_separately(tiny):
    """The gradient is that of m * V / |V|, whose norm is taken as a constant."""
    model = tiny()
    LoRA(rank=4, dora=True, targets="blocks.0.mlp.up").apply(model, seed=0)
    layer = stirred(model).blocks[0].mlp.up
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    a, b, m = (p.detach().clone().requires_grad_() for p in (layer.a, layer.b, layer.magnitude))
    summed = layer.base.weight.detach() + layer.scale * b @ a
    expected = x @ (m / summed.detach().norm(dim=1) * summed.t())
    assert torch.allclose(layer(x), expected, atol=1e-5)
    layer(x).pow(2).sum().backward()
    expected.pow(2).sum().backward()
    for ours, theirs in ((layer.a, a), (layer.b, b), (layer.magnitude, m)):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unmerging_is_exact(tiny, dtype):
    model = tiny(tied=True).to(dtype)
    LoRA(dora=True, targets=("blocks.*", "head"), train_also="norm").apply(model, seed=0)
    stirred(model)
    learned = [name for name, p in model.named_parameters() if p.requires_grad]
    before, weights = model(TOKENS), dict(model.named_parameters())
    merged = merge(model, keep=True)
    assert not model.config.tied
    unmerge(model, merged)
    assert model.config.tied
    assert torch.equal(model(TOKENS), before)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == learned
    assert all(p is weights[name] for name, p in model.named_parameters())
    with pytest.raises(ValueError, match="it contains no layers"):
        unmerge(model, merge(model))


def test_a_verified_merge_tells_the_difference(tiny, capsys):
    model = tiny()
    LoRA().apply(model, seed=0)
    merge_verified(stirred(model).train())
    assert model.training
    assert (
        "adapters of 14 layers: logits of random tokens differ by up to" in capsys.readouterr().err
    )


def test_a_merge_that_changes_the_model_is_refused(tiny):
    model = tiny().to(torch.bfloat16)
    LoRA().apply(model, seed=0)
    before = stirred(model)(TOKENS)
    with pytest.raises(SettingError, match=r"merge: logits .* than the tolerance of 1e-06 allows"):
        merge_verified(model, tolerance=1e-6, keep=True)
    assert torch.equal(model(TOKENS), before)
    merge_verified(model)


def test_a_merge_of_nan_is_refused(tiny):
    model = tiny()
    LoRA().apply(model, seed=0)
    stirred(model).blocks[0].mlp.up.a.data[0, 0] = float("nan")
    with pytest.raises(SettingError, match="differ by up to nan"):
        merge_verified(model)


@pytest.mark.parametrize("tied", [False, True])
def test_modules_trained_in_full(tiny, tied):
    model = tiny(tied=tied)
    LoRA(rank=2, targets="blocks.*", train_also=("embed", "head" if not tied else "norm")).apply(
        model, 0
    )
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    whole = {name for name in trained if not name.endswith((".a", ".b"))}
    assert whole == {"embed.weight", "norm.weight" if tied else "head.weight"}
    assert not is_adapter_only(model)
    model(TOKENS).pow(2).sum().backward()
    assert all(model.get_parameter(name).grad.any() for name in whole)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_also": "embedding"}, "also: 'embedding' names no layer; known: .*, embed, head"),
        ({"train_also": "blocks.0.mlp.up"}, "also: blocks.0.mlp.up is also a target"),
        (
            {"train_also": "embed", "targets": "head"},
            "train_also: embed is also a target, or shares its weights",
        ),
    ],
)
def test_what_cannot_be_trained_in_full(tiny, settings, message):
    with pytest.raises(ValueError, match=message):
        LoRA(**settings).apply(tiny(tied=True), seed=0)


def test_disabled_gives_the_start(tiny):
    model = tiny()
    before = model(TOKENS)
    LoRA(dora=True).apply(model, seed=0)
    assert is_adapter_only(stirred(model))
    with disabled(model):
        assert torch.equal(model(TOKENS), before)
    assert not torch.equal(model(TOKENS), before)
