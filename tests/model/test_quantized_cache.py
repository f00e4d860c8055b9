"""Keys and values in few bits: close to the plain ones, and the same however tokens come."""

import pytest
import torch

from culm.config import SettingError
from culm.engine.engine import Engine
from culm.engine.request import Request
from culm.engine.sampling import Sampling
from culm.model.attention.deltanet import DeltaNet
from culm.model.attention.gqa import GQA
from culm.model.attention.mla import MLA
from culm.model.cache import FullCache, RollingCache
from culm.model.context import CacheView, Context
from culm.model.quantized_cache import GROUP, QuantizedCache, restored, rounded
from culm.model.transformer import TransformerConfig

CPU = torch.device("cpu")


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def empty(bits: int, slots: int = 3, length: int = 80) -> QuantizedCache:
    return QuantizedCache((slots, 2, length, 6), bits, torch.float32, CPU)


def write(cache, keys, values, start: int, slot: int = 0, ends=None):
    """Tokens (B, T, K, D) that follow position `start`; what is then kept."""
    positions = torch.arange(start, start + keys.shape[1]).expand(len(keys), -1)
    length = start + keys.shape[1]
    context = Context(positions, cache=CacheView((), slot, length, ends))
    return cache.update(context, keys, values)[0]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("axis", [-1, -2])
def test_numbers_are_off_by_half_a_step(bits, axis):
    x = drawn(2, 1, 3, GROUP, 6)
    span = x.amax(axis, keepdim=True) - x.amin(axis, keepdim=True)
    off = (restored(rounded(x, bits, axis), bits) - x).abs()
    assert (off <= span / (2**bits - 1) / 2 + 1e-6).all()
    same = torch.full((1, 1, 1, GROUP, 6), 0.3)
    assert torch.equal(restored(rounded(same, bits, axis), bits), same)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("size", [1e-6, 1e-4, 1e-2, 60000])
def test_the_same_in_fp16_whose_smallest_numbers_have_few_bits(bits, size):
    x = (drawn(4, GROUP, 6).tanh() * size).half()
    span = x.float().amax(-2, keepdim=True) - x.float().amin(-2, keepdim=True)
    off = (restored(rounded(x, bits, -2), bits).float() - x.float()).abs()
    smallest = 2**-24  # in fp16: a scale may be larger by this, and a number off by half of it
    assert (off <= (span / (2**bits - 1) + smallest) / 2 + smallest / 2 + size * 2**-10).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_keys_bear_a_channel_that_is_far_out(bits):
    """A hundred times larger than the others: as values, these would lose their last bits."""
    x = drawn(1, 1, 1, GROUP, 6) * torch.tensor([100.0, 1, 1, 1, 1, 1])
    by_channel, by_token = (restored(rounded(x, bits, axis), bits) for axis in (-2, -1))
    small = (..., slice(1, None))
    assert (by_channel - x)[small].abs().mean() * 10 < (by_token - x)[small].abs().mean()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("sizes", [[1] * 64, [64], [31, 1, 1, 31], [5, 30, 29], [40, 24]])
def test_one_by_one_is_at_once(bits, sizes):
    keys, values = drawn(2, 64, 2, 6), drawn(2, 64, 2, 6, seed=1)
    whole, pieces, start = empty(bits), empty(bits), 0
    expected = write(whole, keys, values, 0, slot=1)
    for size in sizes:
        new = slice(start, start + size)
        found = write(pieces, keys[:, new], values[:, new], start, slot=1)
        start += size
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
    for a, b in zip(whole.tensors[:6], pieces.tensors[:6], strict=True):
        torch.testing.assert_close(a[:, :, :2], b[:, :, :2])


@pytest.mark.parametrize("bits", [8, 4])
def test_the_newest_tokens_are_exact(bits):
    keys, values = drawn(1, 50, 2, 6), drawn(1, 50, 2, 6, seed=1)
    for kept, given in zip(write(empty(bits), keys, values, 0), (keys, values), strict=True):
        given = given.transpose(1, 2)
        assert torch.equal(kept[:, :, GROUP:], given[:, :, GROUP:])
        off = (kept - given)[:, :, :GROUP].abs().max()
        assert 0 < off < 5 / 2**bits


def test_padding_and_earlier_sequences_are_never_seen():
    keys, values = drawn(2, 48, 2, 6), drawn(2, 48, 2, 6, seed=1)
    cache = empty(8, slots=2)
    write(cache, drawn(2, 70, 2, 6, seed=2), drawn(2, 70, 2, 6, seed=3), 0)
    ends = torch.tensor([20, 40])
    write(cache, keys, values, 0, ends=ends)
    at = torch.stack([torch.tensor([20, 40]), torch.tensor([21, 41])], 1)
    for step in range(2):
        one = at[:, step : step + 1]
        new = (x[torch.arange(2)[:, None], one] for x in (keys, values))
        kept, _ = cache.update(Context(one, cache=CacheView((), 0, 48)), *new)
    for row, end in enumerate((22, 42)):
        whole = write(empty(8, slots=1), keys[row : row + 1, :end], values[row : row + 1, :end], 0)
        for a, b in zip(kept, whole, strict=True):
            torch.testing.assert_close(a[row, :, :end], b[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("cut", [60, 40, 10])
def test_a_sequence_is_cut_by_going_on_earlier(cut):
    keys, values = drawn(1, 64, 2, 6), drawn(1, 64, 2, 6, seed=1)
    cache = empty(8)
    write(cache, keys[:, :62], values[:, :62], 0)
    found = write(cache, keys[:, cut:], values[:, cut:], cut)
    for kept, given in zip(found, (keys, values), strict=True):
        assert (kept - given.transpose(1, 2)).abs().max() < 0.04


@torch.no_grad()
def test_attention_is_off_by_less_with_more_bits():
    """The output of one layer over 100 tokens, one after the other."""
    part = GQA(heads=4, kv_heads=2)
    config = TransformerConfig(vocabulary=40, width=32, layers=1, context=128, attention=part)
    model, tokens = config.build(), torch.arange(100)[None] * 7 % 40
    for parameter in model.parameters():
        parameter.data += 0.2 * drawn(*parameter.shape)
    expected, off = model(tokens), {}
    for kind in ("plain", "int8", "int4"):
        cache, outs = model.cache(1, 100, kind), []
        for at in range(100):
            context = Context(torch.tensor([[at]]), cache=cache.view(at + 1))
            outs.append(model(tokens[:, at : at + 1], context))
        off[kind] = float((torch.cat(outs, 1) - expected).norm() / expected.norm())
    assert off["plain"] < 1e-5 < off["int8"] < 0.02
    assert 5 * off["int8"] < off["int4"] < 0.2


@pytest.mark.parametrize("bits", [8, 4])
def test_a_slot_is_copied(bits):
    keys, values = drawn(1, 64, 2, 6), drawn(1, 64, 2, 6, seed=1)
    cache, alone = empty(bits), empty(bits)
    write(cache, keys[:, :45], values[:, :45], 0)
    cache.copy(0, 2, 45)
    found = write(cache, keys[:, 45:], values[:, 45:], 45, slot=2)
    write(alone, keys[:, :45], values[:, :45], 0)
    for a, b in zip(found, write(alone, keys[:, 45:], values[:, 45:], 45), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("bits", "bytes_"), [(8, 1.0), (4, 0.5)])
def test_bytes(bits, bytes_):
    """Codes, a scale and a zero per channel or token, and one group of both as they are."""
    groups = 80 // GROUP + 2
    codes = 2 * groups * GROUP * 6 * bytes_
    scales = groups * 2 * (6 + GROUP) * 4
    newest = 2 * GROUP * 6 * 4
    assert empty(bits).bytes == 3 * 2 * (codes + scales + newest) + 3 * 8


@pytest.fixture(scope="module")
def trained():
    """It counts on: the next token is the last one plus 3."""
    part = GQA(heads=4, kv_heads=2)
    config = TransformerConfig(vocabulary=40, width=32, layers=2, context=256, attention=part)
    model = config.build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(60):
        begin = torch.randint(0, 40, (16, 1), generator=torch.Generator().manual_seed(step))
        rows = (begin + 3 * torch.arange(33)) % 40
        loss = -model.logprobs(rows[:, :-1], rows[:, 1:]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize(("kind", "least"), [("int8", 0.98), ("int4", 0.9)])
def test_the_engine_answers_much_the_same(trained, kind, least):
    requests = [Request(tuple(range(n, 2 * n)), 60, Sampling(temperature=0)) for n in (2, 7, 13)]
    plain, rounded_ = (
        [token for c in Engine(trained, 2, cache=cache).generate(requests) for token in c.tokens]
        for cache in ("plain", kind)
    )
    same = sum(a == b for a, b in zip(plain, rounded_, strict=True)) / len(plain)
    assert same >= least


def test_windows_and_states_stay_as_they_are():
    attention = (GQA(heads=4), GQA(heads=4, window=8), DeltaNet(heads=4))
    config = TransformerConfig(
        vocabulary=9, width=32, layers=3, context=64, attention=attention
    )  # fmt: skip
    kinds = [type(layer) for layer in config.build().cache(2, 64, "int8").layers]
    assert kinds[:2] == [QuantizedCache, RollingCache]
    assert FullCache not in kinds


@pytest.mark.parametrize(
    ("part", "kind", "words"),
    [
        (MLA(heads=2, rank=8, head_dim=4, rope_dim=4, value_dim=4), "int8", "use cache=plain"),
        (GQA(heads=4, window=8), "int4", "cache: int4 quantises keys and values of all tokens"),
        (GQA(heads=4, head_dim=5, rope=None), "int4", "cache: int4 puts two channels into a byte"),
    ],
)
def test_what_has_no_such_cache_is_refused(part, kind, words):
    config = TransformerConfig(vocabulary=9, width=32, layers=1, context=64, attention=part)
    with pytest.raises((SettingError, ValueError), match=words):
        Engine(config.build(), cache=kind)


def test_an_unknown_kind_is_named():
    config = TransformerConfig(vocabulary=9, width=32, layers=1, attention=GQA(heads=4))
    with pytest.raises(SettingError, match="cache: 'int2' is not one of plain, int8, int4"):
        Engine(config.build(), cache="int2")
