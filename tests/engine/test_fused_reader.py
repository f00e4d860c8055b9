"""The layers in C++ for many tokens against the model's own, in every kind of weights and shape."""

from itertools import pairwise

import pytest
import torch
from fused_models import GROUPED, build, here, in_groups
from test_fused import CASES

from culm.adapt.lora import LoRA
from culm.adapt.quantize.linear import QuantizedLinear
from culm.engine.fused import FusedDecoder
from culm.engine.fused_reader import FusedReader, fused_reader
from culm.engine.runner import Runner
from culm.model.cache import Cache
from culm.model.context import Context
from culm.model.transformer import Transformer

PROMPTS = torch.randint(0, 77, (3, 43), generator=torch.Generator().manual_seed(3))


def reader_of(model: Transformer, kind: str = "plain") -> tuple[FusedReader, Cache]:
    cache = model.cache(3, 48, kind)
    reader = fused_reader(model, FusedDecoder(model, cache))
    assert reader is not None
    return reader, cache


def part(cache: Cache, start: int, end: int, rows: int = 3) -> tuple[torch.Tensor, Context]:
    """Tokens of the prompts, of which the second is a token shorter."""
    ends = torch.tensor([end, end - 1, end])[:rows]
    positions = torch.arange(start, end).expand(rows, -1)
    return PROMPTS[:rows, start:end], Context(positions, cache=cache.view(end, ends=ends))


def in_fp32(shape: str, weights: str) -> Transformer:
    model = build(shape, weights).float()
    model.dtype = torch.float32
    return model


@here
@pytest.mark.parametrize(("shape", "weights"), CASES)
@torch.inference_mode()
def test_errors_are_those_of_bf16_or_of_int8_activations(shape, weights):
    """bf16: no more than the model's own. Quantised: of fp32 with inputs in int8, and a little."""
    exact, simple, most = in_fp32(shape, weights), build(shape, weights), 1.02
    if weights != "bf16":
        simple, most = in_fp32(shape, weights), 1.25

        def rounds(layer: object, inputs: tuple[torch.Tensor]) -> torch.Tensor:
            return in_groups(inputs[0], GROUPED[weights])

        for layer in simple.modules():
            if isinstance(layer, QuantizedLinear):
                layer.register_forward_pre_hook(rounds)
    reader, ours = reader_of(build(shape, weights))
    theirs, right = simple.cache(3, 48), exact.cache(3, 48)
    for start, end in pairwise([0, 21, 37, 40, 43]):  # a prompt in two pieces, and two windows
        found = reader.states(*part(ours, start, end))[0]
        plain = simple.states(*part(theirs, start, end))[0]
        wanted = exact.states(*part(right, start, end))[0]
        assert (found - wanted).norm() <= most * (plain - wanted).norm()
    for a, b, c in zip(ours.layers, theirs.layers, right.layers, strict=True):
        for found, plain, wanted in zip(a.tensors, b.tensors, c.tensors, strict=True):
            assert (found - wanted).norm() <= 1.25 * (plain - wanted).norm()


@here
@pytest.mark.parametrize("kind", ["int8", "int4"])
@torch.inference_mode()
def test_a_cache_in_few_bits(kind):
    model, exact = build("grouped", "bf16"), build("grouped", "bf16").float()
    exact.dtype = torch.float32
    (reader, ours), theirs = reader_of(model, kind), model.cache(3, 48, kind)
    right = exact.cache(3, 48)
    for start, end in ((0, 37), (37, 43)):
        found = reader.states(*part(ours, start, end))[0]
        plain = model.states(*part(theirs, start, end))[0]
        wanted = exact.states(*part(right, start, end))[0]
        assert (found - wanted).norm() <= 1.05 * (plain - wanted).norm()


@here
@pytest.mark.parametrize("weights", ["int8", "int4"])
@torch.inference_mode()
def test_a_single_nan_is_not_lost_when_activations_become_int8(weights):
    model = build("grouped", weights)
    reader, cache = reader_of(model)
    up = model.blocks[-1].mlp.up
    assert isinstance(up, QuantizedLinear)
    up.scale[5] = torch.nan  # of one input of `down`
    assert reader.states(*part(cache, 0, 20))[0].isnan().all()
    assert FusedDecoder(model, cache)([3], [20]).isnan().all()


@here
@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
@torch.inference_mode()
def test_a_row_does_not_depend_on_the_others_or_on_threads(weights):
    model = build("grouped", weights)
    reader, cache = reader_of(model)
    together = reader.states(*part(cache, 0, 43))[0]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(reader.states(*part(cache, 0, 43))[0], together)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(reader.states(*part(cache, 0, 43, rows=1))[0], together[:1])


@here
@pytest.mark.parametrize("shape", ["windows", "as Gemma 2", "layers differ"])
@torch.inference_mode()
def test_states_of_some_tokens_alone(shape):
    model = build(shape, "bf16")
    (reader, cache), (other, every) = reader_of(model), reader_of(model)
    at = torch.tensor([42, 7, 41])
    alone = reader.states(*part(cache, 0, 43), only=at)[0]
    wanted = other.states(*part(every, 0, 43))[0][torch.arange(3), at]
    assert (alone - wanted).norm() <= 0.005 * wanted.norm()  # another kernel of attention
    for a, b in zip(cache.layers, every.layers, strict=True):
        assert all(map(torch.equal, a.tensors, b.tensors))


@here
def test_who_reads_in_c():
    model = build("grouped", "bf16")
    assert Runner(model, 2, 16, "plain", True, None).reader is not None
    assert Runner(model, 2, 16, "plain", False, None).reader is None
    LoRA().apply(model, 0)
    assert Runner(model, 2, 16, "plain", True, None).reader is None
