"""Mixtures of experts against dense feed-forwards, loops and numbers computed by hand."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from culm.model import linear
from culm.model.context import LayerContext
from culm.model.init import initialize
from culm.model.mlp.balance import sequence_loss, sequences_of, switch_loss, z_loss
from culm.model.mlp.gated import SwiGLU
from culm.model.mlp.moe import MoE

WIDTH = 16


def build(seed=0, **settings):
    built = MoE(**{"experts": 4, "top_k": 2, "hidden": 24, **settings}).build(WIDTH)
    initialize(built, seed, layers=1)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(10)
    return built


def draw(*shape, seed=0):
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(seed))


def contexts(x, **facts):
    return LayerContext(torch.arange(x.shape[1]).expand(x.shape[:2]), **facts)


def by_loop(moe, x):
    """One token and one expert after the other."""
    weights, chosen, _ = moe.router(x.flatten(0, 1), contexts(x))
    out = torch.zeros_like(x.flatten(0, 1))
    for token, row in enumerate(x.flatten(0, 1)):
        for weight, number in zip(weights[token], chosen[token], strict=True):
            gate, up, down = (
                layer.weight[number]
                for layer in (moe.experts.gate, moe.experts.up, moe.experts.down)
            )
            out[token] += weight * (down @ (F.silu(gate @ row) * (up @ row)))
    return out.view_as(x)


def test_losses_by_hand():
    assigned = torch.zeros(10, 4)
    assigned[torch.arange(10), torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 3])] = 1
    shares = torch.tensor([0.35, 0.3, 0.2, 0.15]).expand(10, 4)
    assert switch_loss(shares, assigned).item() / 10 == pytest.approx(1.14)
    even = torch.full((10, 4), 0.25)
    assert switch_loss(even, assigned).item() / 10 == pytest.approx(1)
    assert switch_loss(even, assigned + assigned.roll(1, 1)).item() / 10 == pytest.approx(1)
    logits = torch.tensor([[1.0, 2, 0, -1], [0, 0, 0, 0]])
    assert z_loss(logits, None).item() / 2 == pytest.approx(3.93816891, abs=1e-6)
    assert z_loss(logits, torch.tensor([False, True])).item() == pytest.approx(math.log(4) ** 2)


def test_sequence_loss_is_the_switch_loss_of_each_document():
    shares = torch.rand(12, 4).softmax(-1)
    assigned = F.one_hot(torch.arange(12) * 5 % 7 % 4, 4).float()
    x = torch.zeros(2, 6, 1)
    documents = torch.tensor([[0, 0, 1, 1, 1, 2], [0, 0, 0, 0, 1, 1]])
    found = sequence_loss(shares, assigned, sequences_of(contexts(x, documents=documents)))
    parts = ([0, 1], [2, 3, 4], [5], [6, 7, 8, 9], [10, 11])
    assert found == pytest.approx(sum(switch_loss(shares[p], assigned[p]) for p in parts))
    rows = sequence_loss(shares, assigned, sequences_of(contexts(x)))
    assert rows == pytest.approx(
        sum(switch_loss(shares[p], assigned[p]) for p in (slice(6), slice(6, 12)))
    )


def test_identical_experts_are_one_dense_feed_forward():
    moe, dense = build(scores="sigmoid"), SwiGLU(hidden=24).build(WIDTH)
    for name in ("gate", "up", "down"):
        weight = getattr(moe.experts, name).weight
        weight.data = weight[:1].expand_as(weight).clone()
        getattr(dense, name).weight.data = weight[0].detach()
    x = draw(2, 9)
    torch.testing.assert_close(moe(x, contexts(x)), dense(x, contexts(x)), atol=1e-6, rtol=1e-5)


def test_all_chosen_is_the_weighted_sum_of_dense_feed_forwards():
    moe, x = build(top_k=4), draw(2, 9)
    weights = (x @ moe.router.weight.t()).softmax(-1)
    experts = moe.experts
    weighted = zip(experts.gate.weight, experts.up.weight, experts.down.weight, strict=True)
    every = [(F.silu(x @ gate.t()) * (x @ up.t())) @ down.t() for gate, up, down in weighted]
    expected = sum(weights[..., e, None] * out for e, out in enumerate(every))
    torch.testing.assert_close(moe(x, contexts(x)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("hidden", [24, 21], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("empty", [False, True])
def test_grouped_matmul_equals_a_loop(dtype, hidden, empty, monkeypatch):
    moe, x = build(hidden=hidden, bias=empty), draw(2, 9).requires_grad_()
    if empty:  # nobody goes to experts 0 and 2
        moe.router.bias.data = torch.tensor([-90.0, 9, -90, 9])

    def run():
        moe.zero_grad()
        out = moe(x.to(dtype), contexts(x))
        (x.grad,) = torch.autograd.grad(out.float().square().sum(), x, retain_graph=True)
        out.float().square().sum().backward(inputs=list(moe.parameters()))
        return [out, x.grad, *(p.grad.clone() for p in moe.parameters())]

    found = run()
    with monkeypatch.context() as patch:
        patch.setattr(linear, "grouped", looped)
        expected = run()
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max().clamp_min(1)
    if empty:
        assert not moe.experts.up.weight.grad[[0, 2]].any()
    elif dtype == torch.float32:
        torch.testing.assert_close(found[0], by_loop(moe, x), atol=1e-4, rtol=1e-4)


def looped(x, weight, ends):
    out, start = [], 0
    for end, expert in zip(ends.tolist(), weight, strict=True):
        out.append(x[start:end] @ expert.t())
        start = end
    return torch.cat(out)


def test_the_order_of_tokens_does_not_matter():
    moe, x = build(shared=1), draw(1, 20)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(moe(x[:, order], contexts(x)), moe(x, contexts(x))[:, order])


def test_the_router_learns_through_the_weights_of_the_chosen_alone():
    moe, x = build(normalize=False, selection_bias=True), draw(1, 6)
    moe(x, contexts(x)).sum().backward()
    assert moe.router.weight.grad.abs().sum() > 0
    assert not moe.router.selection.requires_grad
    assert "router.selection" not in dict(moe.named_parameters())
    _, _, routing = moe.router(x[0], contexts(x))
    assert not routing.counts.requires_grad
    one = build(top_k=1)  # its only weight is always one, so nothing is to be learned from it
    one(x, contexts(x)).sum().backward()
    assert one.router.weight.grad.abs().max() < 1e-4


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_the_selection_bias_chooses_and_does_not_weigh(scores):
    moe, x = build(selection_bias=True, scores=scores), draw(1, 30)
    before = moe(x, contexts(x))
    moe.router.selection += 5
    assert torch.equal(moe(x, contexts(x)), before)
    moe.router.selection[3] -= 1e4
    weights, chosen, _ = moe.router(x[0], contexts(x))
    assert not (chosen == 3).any()
    torch.testing.assert_close(weights.sum(-1), torch.ones(30))


def test_padding_is_in_no_count_and_no_loss():
    moe, x = build(balance_loss=0.1, sequence_balance_loss=0.2, z_loss=0.3), draw(2, 8)
    lengths = torch.tensor([5, 8])
    padding = torch.arange(8) >= lengths[:, None]
    _, _, padded = moe.router(x.flatten(0, 1), contexts(x, padding=padding))
    real = x.flatten(0, 1)[~padding.flatten()]
    documents = torch.tensor([[0] * 5 + [1] * 8])
    _, _, plain = moe.router(real, contexts(real[None], documents=documents))
    assert torch.equal(padded.counts, plain.counts)
    assert plain.counts.sum() == 13 * 2
    torch.testing.assert_close(padded.loss, plain.loss)


def test_capacity_skips_the_last_and_nobody_where_there_is_room():
    moe, x = build(top_k=1, capacity=1.0), draw(1, 8)
    context = contexts(x)
    out, whole = moe(x, context), with_capacity(moe, None)(x, contexts(x))
    _, chosen, _ = moe.router(x[0], contexts(x))
    places = [chosen[: token + 1, 0].tolist().count(number) for token, number in enumerate(chosen)]
    lost = torch.tensor(places) > 2  # 8 tokens, 4 experts
    assert context.outputs.routing.dropped == lost.sum() > 0
    assert not out[0, lost].any()
    torch.testing.assert_close(out[0, ~lost], whole[0, ~lost])
    assert torch.equal(with_capacity(moe, 4.0)(x, contexts(x)), whole)
    assert torch.equal(moe.eval()(x, contexts(x)), whole)


def test_padding_takes_no_place_of_an_expert():
    moe, x = build(capacity=1.0), draw(2, 8)
    padding = torch.arange(8) >= torch.tensor([[3], [8]])
    real = x[~padding][None]
    context, alone = contexts(x, padding=padding), contexts(real)
    out = moe(x, context)
    torch.testing.assert_close(out[~padding], moe(real, alone)[0])
    assert context.outputs.routing.dropped == alone.outputs.routing.dropped > 0


def with_capacity(moe, capacity):
    copied = copy.deepcopy(moe)
    copied.router.config = moe.config.model_copy(update={"capacity": capacity})
    return copied


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bias_rate": 0.1}, "bias_rate: there is no bias to update"),
        ({"top_k": 5}, "top_k: 5 is more than the 4"),
        ({"groups": 3}, "groups: 3 does not divide"),
        ({"capacity": 0}, "greater than 0"),
        ({"sequence_balance_loss": -1}, "greater than or equal to 0"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        MoE(**{"experts": 4, "hidden": 8, **settings})
