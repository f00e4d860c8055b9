"""The fused decoding step over keys and values in few bits."""

from pathlib import Path

import pytest
import torch
from fused_models import FEWEST, build, checked_steps, here

from culm.engine import fused
from culm.engine.engine import Engine
from culm.engine.fused import FusedDecoder
from culm.engine.fused_support import obstacle
from culm.engine.request import Request
from culm.engine.sampling import Sampling
from culm.model.context import CacheView, Context
from culm.model.quantized_cache import GROUP, QuantizedCache

pytestmark = here
SHAPES = ["grouped", "layers differ", "as Gemma 2", "many heads"]
CASES = [*((shape, "bf16") for shape in SHAPES), ("grouped", "int8")]


def read(model, cache, tokens, start=0, ends=None):
    """Put tokens (B, T) into a cache, at positions from `start` on."""
    positions = torch.arange(start, start + tokens.shape[1]).expand(tokens.shape)
    view = cache.view(start + tokens.shape[1], ends=ends)
    return model(tokens, Context(positions, cache=view))


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize(
    ("shape", "weights"), [*((s, "bf16") for s in SHAPES), ("grouped", "int8")]
)
@torch.inference_mode()
def test_logits_are_those_of_the_model(shape, weights, kind):
    """Prompts end before, in and after a full group, or fill it while they are continued."""
    checked_steps(shape, weights, [1, 29, 31, 32, 45, 60], kind)


@pytest.mark.parametrize("kind", ["int8", "int4"])
@torch.inference_mode()
def test_what_is_stored_equals_what_the_cache_stores_of_the_same_keys(kind):
    """To the bit, of groups that are full; nothing reads the codes of one that is not."""
    model = build("grouped", "bf16")
    quantized, plain = model.cache(3, 64, kind), model.cache(3, 64)
    # Keys and values of the first layer do not depend on the cache.
    ours, kept = quantized.layers[0], plain.layers[0].tensors
    lengths = [5, 31, 40]
    tokens = torch.arange(3 * 64).view(3, 64) * 7 % 77
    for cache in (quantized, plain):
        read(model, cache, tokens[:, :40], ends=torch.tensor(lengths))
    theirs = QuantizedCache((3, *kept[0].shape[1:]), ours.bits, torch.float16, model.device)
    prompt = (tensor[:, :, :40].transpose(1, 2) for tensor in kept)
    positions, view = torch.arange(40).expand(3, -1), CacheView((), 0, 40, torch.tensor(lengths))
    theirs.update(Context(positions, cache=view), *prompt)
    decoders = [FusedDecoder(model, cache) for cache in (quantized, plain)]
    for step in range(24):
        at = torch.tensor(lengths) + step
        for decoder in decoders:
            decoder(tokens[[0, 1, 2], at].tolist(), at.tolist())
        new = (tensor[torch.arange(3), :, at][:, None] for tensor in kept)
        theirs.update(Context(at[:, None], cache=CacheView((), 0, 64)), *new)
        assert torch.equal(ours.held, theirs.held)
        for row, full in enumerate(ours.held.tolist()):
            for a, b in zip(ours.parts, theirs.parts, strict=True):
                assert all(torch.equal(x[row, :, :full], y[row, :, :full])
                           for x, y in zip(a, b, strict=True))  # fmt: skip
            filled = (at[row] + 1) % 32
            for a, b in zip(ours.newest, theirs.newest, strict=True):
                assert torch.equal(a[row, :, :filled], b[row, :, :filled])
    assert ours.held.tolist() == [0, 1, 2]


@pytest.mark.parametrize("cut", [44, 33, 20])
@torch.inference_mode()
def test_a_sequence_is_cut_by_continuing_earlier(cut):
    """Within the newest group, at its begin, or in a group that was full."""
    model = build("grouped", "bf16")
    ours, theirs = (model.cache(1, 64, "int8") for _ in range(2))
    for cache in (ours, theirs):
        read(model, cache, torch.arange(50)[None])
    decoder = FusedDecoder(model, ours)
    for at in range(cut, cut + 14):
        plain = read(model, theirs, torch.tensor([[at * 5 % 77]]), at)[0, 0]
        found = decoder([at * 5 % 77], [at])[0]
        assert (found - plain).norm() < 0.03 * plain.norm()
    assert torch.equal(ours.layers[0].held, theirs.layers[0].held)


@pytest.mark.parametrize("kind", ["int8", "int4"])
@torch.inference_mode()
def test_a_row_does_not_depend_on_the_others_or_on_threads(kind):
    model, lengths = build("grouped", "bf16"), [60, 3, 31, 45]
    tokens = torch.arange(4 * 64).view(4, 64) * 5 % 77
    threads = torch.get_num_threads()

    def logits(rows, count):
        cache, torch_threads = model.cache(len(rows), 64, kind), torch.get_num_threads()
        for slot, row in enumerate(rows):  # prompts one by one: matmuls of torch depend on rows
            positions = torch.arange(lengths[row])[None]
            view = cache.view(lengths[row], slot=slot)
            model(tokens[row : row + 1, : lengths[row]], Context(positions, cache=view))
        decoder, found = FusedDecoder(model, cache), []
        try:
            torch.set_num_threads(count)
            for step in range(3):
                at = [lengths[row] + step for row in rows]
                found.append(decoder([tokens[r, a] for r, a in zip(rows, at, strict=True)], at))
        finally:
            torch.set_num_threads(torch_threads)
        return torch.stack(found, 1)

    together = logits(range(4), threads)
    assert torch.equal(logits(range(4), 3), together)
    for row in range(4):
        assert torch.equal(logits([row] * FEWEST, threads)[0], together[row])


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_the_engine_decodes_with_it(kind):
    model = build("grouped", "bf16")
    requests = [
        Request(tuple(range(1, 3 + 7 * (i % 4))), 34, Sampling(temperature=0)) for i in range(7)
    ]
    engine = Engine(model, 3, cache=kind)
    assert obstacle(model, engine.runner.cache) is None
    fused = engine.generate(requests)
    plain = Engine(model, 3, cache=kind, fused=False).generate(requests)
    same = [
        next((n for n, (x, y) in enumerate(zip(a.tokens, b.tokens, strict=True)) if x != y), 34)
        for a, b in zip(plain, fused, strict=True)
    ]  # tokens until two that are almost equally likely
    assert sum(same) / len(same) > 20


def test_both_languages_have_groups_of_one_size() -> None:
    """Another size in C++ alone would read codes of other tokens."""
    source = Path(fused.__file__).with_name("fused.cpp").read_text()
    assert f"constexpr int64_t GROUP = {GROUP};" in source
