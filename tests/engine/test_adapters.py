"""A batch whose rows have different adapters == each adapter merged and run alone."""

import copy
from dataclasses import replace

import pytest
import torch

from culm.adapt.lora import LoRA, adapters_of
from culm.adapt.merge import merge
from culm.adapt.multi_lora import adapter_names, attach_adapters
from culm.adapt.quantize.int8 import Int8
from culm.engine.engine import Engine
from culm.engine.request import Request
from culm.engine.sampling import Sampling
from culm.model.attention.gqa import GQA
from culm.model.context import Context
from culm.model.transformer import TransformerConfig

KINDS = {
    "plain": LoRA(rank=4),
    "dora": LoRA(rank=3, dora=True),
    "few": LoRA(rank=6, rslora=True, targets=("blocks.*.attention.{q,v}", "blocks.1.mlp.down")),
}


def base(bias=True):
    attention = GQA(heads=4, kv_heads=2, bias=bias, qk_norm=None if bias else "head")
    config = TransformerConfig(
        vocabulary=61, width=32, layers=2, context=96, attention=(attention,), tied=False
    )
    built = config.build(seed=3).eval()
    with torch.no_grad():
        for name, weight in built.named_parameters():
            weight.mul_(8) if weight.ndim == 2 else weight.add_(0.1 * (len(name) % 3))
    return built


def adapted(model, settings, seed):
    """A copy of the model with an adapter that changes what it says."""
    model = copy.deepcopy(model)
    settings.apply(model, seed)
    random = torch.Generator().manual_seed(seed)
    for layer in adapters_of(model).values():
        torch.nn.init.normal_(layer.b, std=0.3, generator=random)
        if layer.magnitude is not None:
            layer.magnitude.data.mul_(
                0.7 + 0.6 * torch.rand(layer.magnitude.shape, generator=random)
            )
    return model


@pytest.fixture(params=["plain", "quantised"])
def models(request):
    """A model with three resident adapters, and by name the models that each would be alone."""
    model = base(bias=request.param == "plain")
    if request.param == "quantised":
        Int8().apply(model)
    alone = {name: adapted(model, kind, i) for i, (name, kind) in enumerate(KINDS.items())}
    layers = {name: adapters_of(copy.deepcopy(one)) for name, one in alone.items()}
    for one in alone.values():
        merge(one)
    alone[None] = copy.deepcopy(model)
    assert attach_adapters(model, layers) == 14
    assert adapter_names(model) == tuple(KINDS)
    return model, alone


def requests(sampling=Sampling(temperature=0)):
    generator = torch.Generator().manual_seed(1)
    names = [*KINDS, None]
    return [
        Request(
            tuple(torch.randint(0, 61, (3 + 5 * (i % 3),), generator=generator).tolist()),
            6 + 2 * i, replace(sampling, seed=i), adapter=names[i % 4],
        )
        for i in range(10)
    ]  # fmt: skip


@pytest.mark.parametrize("sampling", [Sampling(temperature=0), Sampling(temperature=0.8)])
@pytest.mark.parametrize("slots", [1, 3, 10])
def test_a_mixed_batch_equals_each_merged_model_alone(models, sampling, slots):
    model, alone = models
    asked = requests(sampling)
    together = Engine(model, slots).generate(asked)
    for request, mine in zip(asked, together, strict=True):
        plain = replace(request, adapter=None)
        assert mine.tokens == Engine(alone[request.adapter], 1).generate([plain])[0].tokens
        assert len(mine.tokens) == request.max_tokens


def test_equal_prompts_are_shared_within_an_adapter_only(models):
    model, alone = models
    names = ["plain", None, "dora", "plain", "few", None, "plain"]
    asked = [Request((7, 7, 2, 9), 8, Sampling(seed=i), adapter=n) for i, n in enumerate(names)]
    read = []
    count = model.embed.register_forward_hook(lambda _, inputs, __: read.append(inputs[0].shape))
    together = Engine(model, len(asked)).generate(asked)
    count.remove()
    assert read[0] == (4, 8)  # three adapters and none; the length is rounded up
    for request, mine in zip(asked, together, strict=True):
        plain = replace(request, adapter=None)
        assert mine.tokens == Engine(alone[request.adapter], 1).generate([plain])[0].tokens


def test_rows_without_an_adapter_are_the_base_to_the_bit(models):
    model, alone = models
    tokens = torch.arange(24).view(3, 8)
    rows = (torch.tensor([1]), torch.tensor([0]))
    mixed = model(tokens, replace(Context.plain(tokens), adapters=rows))
    plain = alone[None](tokens)
    assert torch.equal(mixed[[0, 2]], plain[[0, 2]])
    assert not torch.equal(mixed[1], plain[1])
    torch.testing.assert_close(mixed[1], alone["plain"](tokens[1:2])[0], atol=1e-3, rtol=1e-4)
    assert torch.equal(model(tokens), plain)  # nothing of the rows stays in the model


def test_a_failed_forward_leaves_no_rows_behind(models):
    model, alone = models
    tokens = torch.arange(8).view(1, 8)
    rows = (torch.tensor([5]), torch.tensor([0]))  # no such row
    with pytest.raises(IndexError):
        model(tokens, replace(Context.plain(tokens), adapters=rows))
    assert torch.equal(model(tokens), alone[None](tokens))


def test_an_unknown_adapter_is_refused(models):
    model, alone = models
    engine = Engine(model)
    with pytest.raises(ValueError, match="adapter: 'poem' is not loaded; known: plain"):
        engine.add(Request((1, 2), 4, adapter="poem"))
    assert not engine.busy
    with pytest.raises(ValueError, match="known: none"):
        Engine(alone[None]).add(Request((1,), 4, adapter="plain"))
