"""Caches: reading in pieces equals reading at once, in any order of calls."""

import pytest
import torch

from culm.model.attention.deltanet import DeltaNet
from culm.model.attention.gqa import GQA
from culm.model.attention.hyperbolic import Hyperbolic
from culm.model.attention.mla import MLA
from culm.model.cache import FullCache, RollingCache
from culm.model.context import Context
from culm.model.transformer import TransformerConfig

W = 6
ATTENTIONS = {
    "all": GQA(heads=4, kv_heads=2),
    "window": GQA(heads=4, kv_heads=2, window=W),
    "sinks and window": GQA(heads=4, window=W, sink_tokens=2, sink_logits=True),
    "alibi": GQA(heads=4, rope=None, alibi=True),
    "alibi and window": GQA(heads=4, rope=None, alibi=True, window=W),
    "no positions": GQA(heads=4, rope=None, softcap=2.0),
    "value residual": GQA(heads=4, kv_heads=2, value_residual=True),
    "latent": MLA(heads=4, rank=16, head_dim=8, rope_dim=4, value_dim=6),
    "latent queries": MLA(heads=4, rank=16, query_rank=12, head_dim=8, rope_dim=4, value_dim=6),
    "state": DeltaNet(heads=4, key_heads=2, head_dim=8, value_dim=6),
    "hyperbolic": Hyperbolic(heads=4, kv_heads=2, qk_norm=True, learned_curvature=True),
}
LENGTH = 3 * W + 1


def build(name: str, **settings):
    values = {"vocabulary": 60, "width": 32, "layers": 2, "context": 64, "tied": False}
    config = TransformerConfig(**{**values, "attention": ATTENTIONS[name], **settings})
    model = config.build(seed=0).eval()
    drawn = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=drawn)
    return model


def tokens(rows: int = 1, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(0, 60, (rows, length), generator=torch.Generator().manual_seed(2))


def read(model, cache, rows, start: int, slot: int = 0):
    """Logits of rows that continue what the slots from `slot` on hold, up to `start`."""
    positions = torch.arange(start, start + rows.shape[1]).expand(rows.shape)
    return model(rows, Context(positions, cache=cache.view(start + rows.shape[1], slot)))


@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize("sizes", [[1] * LENGTH, [LENGTH], [4, 9, 1, 1, 4], [2, 2, 13, 2]])
@torch.no_grad()
def test_reading_in_pieces_is_reading_at_once(name, sizes):
    model, rows = build(name), tokens(2)
    expected, cache, start = model(rows), model.cache(3, 32), 0
    for size in sizes:
        found = read(model, cache, rows[:, start : start + size], start, slot=1)
        assert (found - expected[:, start : start + size]).abs().max() <= 1e-4
        start += size


@pytest.mark.parametrize("name", ATTENTIONS)
@torch.no_grad()
def test_padding_is_never_seen(name):
    """Two prompts of unequal length read together, as the engine does, then continued."""
    model, rows = build(name), tokens(2)
    expected, cache, ends = model(rows), model.cache(2, 32), [5, 16]
    padded = rows[:, :16].clone()
    padded[0, 5:] = 0
    positions = torch.arange(16).expand(2, -1)
    context = Context(positions, cache=cache.view(16, ends=torch.tensor(ends)))
    model(padded, context)
    for step in range(3):
        at = torch.tensor([end + step for end in ends])
        found = model(rows[range(2), at][:, None], Context(at[:, None], cache=cache.view(24)))
        assert (found[:, 0] - expected[range(2), at]).abs().max() <= 1e-4


@pytest.mark.parametrize("name", ATTENTIONS)
@torch.no_grad()
def test_a_slot_is_copied_and_used_again(name):
    model, rows = build(name), tokens(2)
    expected, cache = model(rows), model.cache(3, 32)
    read(model, cache, rows[1:], 0)  # another sequence was here
    read(model, cache, rows[:1, :11], 0)
    cache.copy(0, 2, 11)
    found = read(model, cache, rows[:1, 11:], 11, slot=2)
    assert (found - expected[:1, 11:]).abs().max() <= 1e-4


@torch.no_grad()
def test_a_sequence_is_cut_by_going_on_earlier():
    model, rows = build("all"), tokens()
    expected, cache = model(rows), model.cache(1, 32)
    wrong = (rows[:, 8:14] + 1) % 60
    read(model, cache, rows[:, :8], 0)
    read(model, cache, wrong, 8)  # rejected guesses
    assert (read(model, cache, rows[:, 8:], 8) - expected[:, 8:]).abs().max() <= 1e-4


@pytest.mark.parametrize("name", ["window", "sinks and window", "alibi and window"])
@pytest.mark.parametrize("cut", [1, 3, 4])
@torch.no_grad()
def test_a_window_is_cut_by_what_is_spare(name, cut):
    """After prompts and single tokens, by up to all of the four spare tokens."""
    model, rows = build(name), tokens()
    expected = model(rows)
    for sizes in ([14], [1] * 14, [9, 5]):
        cache, start = model.cache(1, 32, rollback=4), 0
        assert all(type(layer) is RollingCache for layer in cache.layers)
        wrong = (rows[:, 14 - cut : 14] + 1) % 60  # guesses that are rejected
        guessed = torch.cat((rows[:, : 14 - cut], wrong), 1)
        for size in sizes:
            read(model, cache, guessed[:, start : start + size], start)
            start += size
        for at in range(14 - cut, LENGTH):
            found = read(model, cache, rows[:, at : at + 1], at)
            assert (found - expected[:, at : at + 1]).abs().max() <= 1e-4


@torch.no_grad()
def test_without_spare_tokens_a_cut_window_lacks_some():
    model, rows = build("window"), tokens()
    cache = model.cache(1, 32)
    read(model, cache, rows[:, :14], 0)
    found = read(model, cache, rows[:, 11:12], 11)
    assert (found - model(rows)[:, 11:12]).abs().max() > 1e-3


def test_each_attention_builds_its_kind_of_cache():
    """Bytes of a token: keys and values; a window's worth; one latent and a rotated key."""
    whole = build("all").cache(2, 48)
    assert whole.bytes == 2 * 2 * 48 * (2 * 2 * 8) * 4
    window = build("window").cache(2, 48)
    assert all(type(layer) is RollingCache for layer in window.layers)
    assert window.bytes == 2 * 2 * W * (2 * 2 * 8) * 4
    assert all(type(layer) is FullCache for layer in build("window").cache(2, W).layers)
    assert build("latent").cache(2, 48).bytes == 2 * 2 * 48 * (16 + 4) * 4
