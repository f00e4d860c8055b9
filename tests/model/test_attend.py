"""Attention: every backend is the plain softmax over what may be seen."""

import itertools
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from culm.model import flash
from culm.model.attend import attend, attend_from, serves
from culm.model.attend_cached import attend_cached
from culm.model.attention.gqa import slopes_of
from culm.model.backend import trial
from culm.model.context import Context
from culm.model.logprobs import capped
from culm.model.rope import Rope, rotate
from culm.model.score_rule import Backend, ScoreRule

BACKENDS: tuple[Backend, ...] = ("sdpa", "blocks")
SLOPES, SINKS = torch.tensor([0.5, 0.25, 0.1, 0.05, 0.02, 0.01]), torch.linspace(-1.0, 1.0, 6)
RULES = {
    "scale": ScoreRule(scale=0.1),
    "softcap": ScoreRule(scale=2.0, softcap=1.5),
    "slopes": ScoreRule(slopes=SLOPES),
    "sinks": ScoreRule(sink_logits=SINKS),
    "first": ScoreRule(window=4, sink_tokens=2),
    "all": ScoreRule(1.0, 4, 1, 2.0, SLOPES, SINKS),
}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor, rule: ScoreRule = ScoreRule()
) -> Tensor:
    """One query, one head at a time. visible: (B, T, S)."""
    scale = rule.scale or q.shape[3] ** -0.5
    out = q.new_zeros(*q.shape[:3], v.shape[-1])
    group = q.shape[2] // k.shape[2]
    for row in range(q.shape[0]):
        for head in range(q.shape[2]):
            keys, values = k[row, :, head // group], v[row, :, head // group]
            for time in range(q.shape[1]):
                seen = visible[row, time]
                scores = keys[seen] @ q[row, time, head] * scale
                if rule.softcap:
                    scores = rule.softcap * (scores / rule.softcap).tanh()
                if rule.slopes is not None:
                    scores = scores - rule.slopes[head] * (time - seen.nonzero()[:, 0])
                total = scores.exp().sum()
                if rule.sink_logits is not None:
                    total = total + rule.sink_logits[head].exp()
                out[row, time, head] = scores.exp() / total @ values[seen]
    return out


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", [None, 1, 7])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("length", [1, 13, 70])  # one block, and two of unequal length
def test_backends_are_plain_attention(
    backend: Backend, window: int | None, packed: bool, length: int
) -> None:
    q, k, v = (drawn(2, length, heads, 4, seed=i) for i, heads in enumerate((6, 2, 2)))
    documents = (torch.arange(length) // 5).expand(2, length) if packed else None
    places = torch.arange(length)
    visible = places[None] <= places[:, None]
    if window is not None:
        visible &= places[:, None] - places[None] < window
    visible = visible.expand(2, length, length)
    if documents is not None:
        visible = visible & (documents[:, :, None] == documents[:, None])
    given = attend(
        q, k, v, Context(places.expand(2, -1), documents), ScoreRule(window=window), backend
    )
    torch.testing.assert_close(given, plain(q, k, v, visible), atol=1e-5, rtol=0)


def seen_by(rule: ScoreRule, documents: Tensor | None, length: int) -> Tensor:
    """(2, T, T)."""
    places = torch.arange(length)
    begins = torch.zeros(2, length, dtype=torch.int64)
    visible = (places[None] <= places[:, None]).expand(2, -1, -1)
    if documents is not None:
        same = documents[:, :, None] == documents[:, None]
        begins = same.int().argmax(-1)
        visible = visible & same
    if rule.window is not None:
        near = places[:, None] - places[None] < rule.window
        visible = visible & (near | (places - begins < rule.sink_tokens)[:, None])
    return visible


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("packed", [False, True])
def test_every_rule_is_plain_attention(name: str, packed: bool) -> None:
    rule, length = RULES[name], 70
    q, k, v = (drawn(2, length, heads, 4, seed=i) for i, heads in enumerate((6, 2, 2)))
    documents = (torch.arange(length) // 9).expand(2, length) if packed else None
    positions = torch.arange(length) % 9 if packed else torch.arange(length)
    context = Context(positions.expand(2, -1), documents)
    expected = plain(q, k, v, seen_by(rule, documents, length), rule)
    for backend in BACKENDS:
        if serves(backend, rule, q.device):
            found = attend(q, k, v, context, rule, backend)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        else:
            with pytest.raises(ValueError, match="backend: sdpa does not support"):
                attend(q, k, v, context, rule, backend)


@pytest.mark.slow  # one C++ compilation a rule
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch compiles it with a C++ compiler")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", sorted({*RULES} - {"sinks"}))
@torch.no_grad()
def test_flex_is_plain_attention(name: str, packed: bool) -> None:
    torch.compiler.reset()
    rule = replace(RULES[name], sink_logits=None)
    q, k, v = (drawn(2, 70, heads, 16, seed=i) for i, heads in enumerate((6, 2, 2)))
    documents = (torch.arange(70) // 9).expand(2, 70) if packed else None
    positions = torch.arange(70) % 9 if packed else torch.arange(70)
    context = Context(positions.expand(2, -1), documents)
    found = attend(q, k, v, context, rule, "flex")
    expected = attend(q, k, v, context, rule, "blocks")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_flex_refuses_what_it_cannot_compute_on_a_cpu() -> None:
    q, context = drawn(1, 4, 6, 16), Context(torch.arange(4)[None])
    with pytest.raises(ValueError, match=r"backend: flex does not support .* here; blocks does"):
        attend(q, q, q, context, RULES["sinks"], "flex")
    with pytest.raises(NotImplementedError, match="FlexAttention has no backward on a CPU"):
        attend(q.requires_grad_(), q, q, context, ScoreRule(), "flex")


@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("packed", [False, True])
def test_flash_is_asked_for_plain_attention(monkeypatch, window: int | None, packed: bool) -> None:
    """Its kernel needs a GPU: one that does what torch says of it stands in its place."""

    def kernel(q, k, v, borders, borders_k, longest, longest_k, *, scale, window_size, enable_gqa):
        assert borders.dtype == torch.int32
        assert enable_gqa
        outs = []
        for begin, end in itertools.pairwise(borders.tolist()):
            assert end - begin <= longest
            away = torch.arange(end - begin)[:, None] - torch.arange(end - begin)
            back, ahead = window_size
            mask = (away >= -ahead) & ((away <= back) | (back < 0))
            rows = (x[begin:end].transpose(0, 1) for x in (q, k, v))
            out = F.scaled_dot_product_attention(*rows, mask, scale=scale, enable_gqa=True)
            outs.append(out.transpose(0, 1))
        return torch.cat(outs)

    monkeypatch.setattr(flash, "varlen_attn", kernel)
    q, k, v = (drawn(2, 70, heads, 16, seed=i) for i, heads in enumerate((6, 2, 2)))
    documents = (torch.arange(70) // 9).expand(2, 70) if packed else None
    context, rule = Context(torch.arange(70).expand(2, -1), documents), ScoreRule(0.3, window)
    found = attend(q, k, v, context, rule, "flash2")
    expected = attend(q, k, v, context, rule, "blocks")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_flash_takes_plain_rules_only() -> None:
    served = {name for name, rule in RULES.items() if serves("flash2", rule, torch.device("cpu"))}
    assert served == {"scale"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("backend", ["sdpa", "flex", "flash2"])
def test_backends_of_a_gpu_pass_their_trial(backend: Backend) -> None:
    assert trial(torch.device("cuda"), backend, torch.bfloat16, True) is None


def test_a_sink_by_hand() -> None:
    """Scores 1 and 2, values 1 and 3, sink 0.5: the denominator has one more term."""
    q, k = torch.ones(1, 2, 1, 1), torch.tensor([1.0, 2.0]).view(1, 2, 1, 1)
    v = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)
    context = Context(torch.arange(2)[None])
    out = attend(q, k, v, context, ScoreRule(scale=1.0, sink_logits=torch.tensor([0.5])), "blocks")
    assert float(out[0, 1, 0, 0]) == pytest.approx(2.116819, abs=1e-6)


def test_slopes_of_alibi() -> None:
    assert slopes_of(8).tolist() == [2.0**-i for i in range(1, 9)]
    assert slopes_of(3).tolist() == pytest.approx([2**-4, 2**-8, 2**-2])


def test_softcap_is_bounded_and_the_identity_near_zero() -> None:
    x = torch.tensor([0.0, 1e-3, 1e4], requires_grad=True)
    y = capped(x * 1.0, 30.0)
    assert y.tolist() == pytest.approx([0.0, 1e-3, 30.0], abs=1e-6)
    assert torch.autograd.grad(y[0], x)[0][0] == 1.0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("new", [1, 4])
def test_cached_attention_sees_the_places_before(
    backend: Backend, window: int | None, new: int
) -> None:
    q, places = drawn(2, new, 6, 4), torch.arange(16)
    k, v = drawn(2, 2, 16, 4, seed=1), drawn(2, 2, 16, 4, seed=2)
    positions = torch.stack([torch.arange(new) + 2, torch.arange(new) + 9])
    behind = positions[:, :, None] - places
    visible = (behind >= 0) & (behind < (window or 99))
    given = attend_cached(q, k, v, places, positions, ScoreRule(window=window), backend)
    expected = plain(q, k.transpose(1, 2), v.transpose(1, 2), visible)
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("new", [1, 4])
@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("ring", [False, True])
def test_over_a_cache_in_fp16_queries_in_bf16_attend_in_fp32(
    backend: Backend, new: int, rows: int, ring: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of some rows at a time."""
    q, places = drawn(3, new, 6, 4).bfloat16(), torch.arange(16)
    k, v = (drawn(3, 2, 16, 4, seed=seed).half() for seed in (1, 2))
    positions = torch.arange(new) + torch.tensor([[9], [3], [7]])
    places = (places + torch.tensor([[0], [1], [2]])) % 16 - 1 if ring else places
    first = positions - torch.tensor([[2], [3], [0]])
    monkeypatch.setattr("culm.model.attend_cached.WIDENED", rows * 2 * 4 * k[0].numel())
    for since in (None, first):
        given = attend_cached(q, k, v, places, positions, backend=backend, first=since)
        exact = attend_cached(
            q.float(), k.float(), v.float(), places, positions, backend=backend, first=since
        )
        torch.testing.assert_close(given, exact.bfloat16(), rtol=2**-7, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("values", [4, 6])
@pytest.mark.parametrize("new", [256, 300, 600])
def test_long_parts_are_read_in_blocks(backend: Backend, values: int, new: int) -> None:
    q, places = drawn(2, new, 6, 4), torch.arange(new + 50)
    k, v = drawn(2, 2, new + 50, 4, seed=1), drawn(2, 2, new + 50, values, seed=2)
    positions = torch.stack([torch.arange(new), torch.arange(new) + 40])
    given = attend_cached(q, k, v, places, positions, backend=backend)
    visible = places <= positions[:, :, None]
    expected = plain(q, k.transpose(1, 2), v.transpose(1, 2), visible)
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=0)


def test_rotation_by_hand() -> None:
    """Position 1, base 10000, four elements: angles 1 and 0.01, pairs (0, 2) and (1, 3)."""
    rotation = Rope().build(4)(torch.tensor([[1]]))
    turned = rotate(torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]]), rotation)
    expected = [-1.98411, 1.95990, 2.46238, 4.01980]
    torch.testing.assert_close(turned.flatten(), torch.tensor(expected), atol=1e-5, rtol=0)


def test_scores_depend_on_the_distance_alone() -> None:
    q, k = drawn(1, 1, 1, 8), drawn(1, 1, 1, 8, seed=1)
    rope = Rope().build(8)

    def score(query: int, key: int) -> Tensor:
        turned = [rotate(x, rope(torch.tensor([[place]]))) for x, place in ((q, query), (k, key))]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(score(105, 100), score(5, 0), atol=1e-4, rtol=0)
    assert not torch.isclose(score(105, 100), score(0, 5))


@pytest.mark.parametrize("backend", ["blocks", "sdpa"])
@pytest.mark.parametrize("window", [None, 5])
def test_queries_from_the_middle_of_a_row(backend: Backend, window: int | None) -> None:
    """A context-parallel rank has some of the queries of a row, and all keys."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 24, heads, 8) for heads in (4, 2, 2))
    places = torch.arange(24).expand(2, -1)
    context = Context(places % 15, (places // 15).int())
    rule = ScoreRule(window=window)
    whole = attend(q, k, v, context, rule)
    for start, end in ((0, 6), (6, 18), (18, 24)):
        found = attend_from(start, q[:, start:end], k, v, context, rule, backend)
        torch.testing.assert_close(found, whole[:, start:end], atol=1e-5, rtol=1e-5)
