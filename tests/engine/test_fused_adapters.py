"""The fused decoding step with one adapter on all rows, or another one on each."""

import copy

import pytest
import torch
from fused_models import FEWEST, build, checked_steps, here

from culm.adapt.lora import LoRA, adapters_of, disabled
from culm.adapt.multi_lora import MultiLoRALinear, attach_adapters
from culm.engine.engine import Engine
from culm.engine.fused import FusedDecoder
from culm.engine.fused_support import obstacle
from culm.engine.request import Request
from culm.engine.sampling import Sampling
from culm.model.transformer import Transformer

pytestmark = here
PLAIN = LoRA(rank=5)
KINDS = {
    "plain": PLAIN,
    "wide": LoRA(rank=20, rslora=True, targets=("blocks.*.attention.{q,v}", "blocks.1.mlp.down")),
    "dora": LoRA(rank=3, dora=True),
}
CASES = [("grouped", "bf16"), ("grouped", "int8"), ("many heads", "bf16"), ("many heads", "int4")]


def adapted(model: Transformer, settings: LoRA = PLAIN, seed: int = 1) -> Transformer:
    """The model with an adapter that changes what it says."""
    settings.apply(model, seed)
    random = torch.Generator().manual_seed(seed)
    for layer in adapters_of(model).values():
        torch.nn.init.normal_(layer.b, std=0.2, generator=random)
        if layer.magnitude is not None:
            share = torch.rand(layer.magnitude.shape, generator=random)
            layer.magnitude.data.mul_(0.7 + 0.6 * share)
    return model


def attached(model: Transformer) -> Transformer:
    """The model with all of `KINDS`."""
    layers = {
        name: adapters_of(adapted(copy.deepcopy(model), kind, seed))
        for seed, (name, kind) in enumerate(KINDS.items())
    }
    attach_adapters(model, layers)
    return model


@pytest.mark.parametrize(("shape", "weights"), CASES)
@torch.inference_mode()
def test_one_adapter_is_added_to_all_rows(shape, weights):
    checked_steps(shape, weights, [3, 9, 14], change=adapted)


@torch.inference_mode()
def test_an_adapter_of_the_head():
    head = LoRA(rank=4, targets=("head", "blocks.*.mlp.gate"))
    checked_steps("many heads", "bf16", [3, 9], change=lambda model: adapted(model, head))


@pytest.mark.parametrize(("shape", "weights"), CASES)
@torch.inference_mode()
def test_each_row_has_its_own_adapter_or_none(shape, weights):
    names = ["plain", None, "dora", "wide", "plain"]
    checked_steps(shape, weights, [3, 9, 14, 1, 20], change=attached, adapters=names)


@torch.inference_mode()
def test_adapters_in_bf16_as_a_served_model_has_them():
    def in_bf16(model):
        for module in attached(model).modules():
            if isinstance(module, MultiLoRALinear):
                module.a.data, module.b.data = module.a.bfloat16(), module.b.bfloat16()

    names = ["plain", None, "dora", "wide", "plain"]
    checked_steps("many heads", "bf16", [3, 9, 14, 1, 20], change=in_bf16, adapters=names)


@torch.inference_mode()
def test_adapters_over_a_quantised_cache():
    names = ["wide", None, "plain"]
    checked_steps("grouped", "bf16", [30, 45, 9], "int8", change=attached, adapters=names)


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_a_row_does_not_depend_on_the_others_or_on_threads(weights):
    model = attached(build("grouped", weights))
    decoder = FusedDecoder(model, model.cache(7, 8))
    names = ["plain", None, "dora", "wide", None, "wide", "plain"]
    together = decoder([3] * 7, [0] * 7, names)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(decoder([3] * 7, [0] * 7, names), together)
    finally:
        torch.set_num_threads(threads)
    for row, name in enumerate(names):
        alone = decoder([3] * FEWEST, [0] * FEWEST, [name] * FEWEST)[0]
        assert torch.equal(alone, together[row])
    base = build("grouped", weights)
    plain = FusedDecoder(base, base.cache(FEWEST, 8))([3] * FEWEST, [0] * FEWEST)[0]
    assert torch.equal(together[1], plain)
    assert len({tuple(row.tolist()) for row in together}) == len(KINDS) + 1


def test_an_adapter_is_read_as_it_is_at_each_step():
    """It changes in training, and is off while the initial model is asked."""
    model = adapted(build("grouped", "bf16"))
    decoder, base = FusedDecoder(model, model.cache(1, 8)), build("grouped", "bf16")
    on = decoder([3], [0])
    with disabled(model):
        off = decoder([3], [0])
    assert torch.equal(off, FusedDecoder(base, base.cache(1, 8))([3], [0]))
    assert torch.equal(decoder([3], [0]), on)
    with torch.no_grad():
        for layer in adapters_of(model).values():
            layer.a.mul_(2)
            layer.b.mul_(-1)
    changed = decoder([3], [0])
    assert torch.equal(changed, FusedDecoder(model, model.cache(1, 8))([3], [0]))
    assert not torch.equal(changed, on)


@pytest.mark.parametrize("in_bf16", [False, True])
def test_the_engine_decodes_with_it(in_bf16):
    model = attached(build("grouped", "bf16"))
    model = model.bfloat16() if in_bf16 else model
    names = [*KINDS, None]
    requests = [
        Request((3 + i, 9, 4), 20, Sampling(temperature=0), adapter=names[i % 4]) for i in range(9)
    ]
    engine = Engine(model, 4)
    assert obstacle(model, engine.runner.cache) is None
    fused = engine.generate(requests)
    plain = Engine(model, 4, fused=False).generate(requests)
    same = [
        next((n for n, (x, y) in enumerate(zip(a.tokens, b.tokens, strict=True)) if x != y), 20)
        for a, b in zip(plain, fused, strict=True)
    ]  # tokens until two that are almost equally likely
    assert sum(same) / len(same) > 12


def test_it_says_which_adapters_it_does_not_compute():
    model = build("grouped", "bf16")
    dora = adapted(copy.deepcopy(model), KINDS["dora"])
    assert "dora=true" in obstacle(dora, dora.cache(1, 8))
    layers = adapters_of(adapted(copy.deepcopy(model)))
    both = adapted(model)
    attach_adapters(both, {"second": layers})
    assert "on top of another one" in obstacle(both, both.cache(1, 8))
