"""Chunked log-probabilities against plain cross-entropy: values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from culm.batch import IGNORED
from culm.model import logprobs
from culm.model.linear import Linear
from culm.model.logprobs import Kernels, logprobs_of


def case(dtype: torch.dtype) -> tuple[torch.Tensor, Linear, torch.Tensor, torch.Tensor]:
    drawn = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 11, 16, generator=drawn).to(dtype).requires_grad_()
    head = Linear(16, 97)
    head.weight.data = torch.randn(97, 16, generator=drawn)
    targets = torch.randint(0, 97, (3, 11), generator=drawn)
    targets[0, ::3] = IGNORED
    return hidden, head, targets, torch.randn(3, 11, generator=drawn)


def plain(hidden, head, targets, temperature):
    logits = head(hidden.float()) / temperature
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return -losses.view(targets.shape)


@pytest.mark.parametrize("kept", [0, 1 << 20])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_values_and_gradients_are_those_of_cross_entropy(
    monkeypatch, dtype, near, temperature, kept
):
    monkeypatch.setattr(logprobs, "CHUNK", 8)
    monkeypatch.setattr(logprobs, "STORED_BYTES", kept)
    hidden, head, targets, weights = case(dtype)
    found = {}
    for name, function in (("plain", plain), ("chunked", logprobs_of)):
        values = function(hidden, head, targets, temperature)
        grads = torch.autograd.grad((values * weights).sum(), (hidden, head.weight))
        found[name] = (values.detach(), *(g.float() for g in grads))
    for ours, theirs in zip(found["chunked"], found["plain"], strict=True):
        assert (ours - theirs).norm() <= near * theirs.norm()


def test_the_gradient_of_the_head_does_not_wear_off_over_chunks(monkeypatch):
    """Summed in the precision of the weights, not in the bf16 of its parts."""
    drawn = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 4096, 32, generator=drawn)
    head = Linear(32, 128)
    head.weight.data = torch.randn(128, 32, generator=drawn) * 0.02
    targets = torch.randint(0, 128, (1, 4096), generator=drawn)
    exact = torch.autograd.grad(plain(hidden, head, targets, 1.0).sum(), head.weight)[0]
    errors = []
    for chunk in (4096, 16):
        monkeypatch.setattr(logprobs, "CHUNK", chunk)
        values = logprobs_of(hidden.bfloat16().requires_grad_(), head, targets)
        [found] = torch.autograd.grad(values.sum(), head.weight)
        errors.append(float((found - exact).norm() / exact.norm()))
    assert errors[1] < 1.3 * errors[0]


def test_a_head_with_a_bias_keeps_it():
    hidden, _, targets, _ = case(torch.float32)
    head = Linear(16, 97, bias=True)
    torch.nn.init.normal_(head.weight)
    torch.nn.init.normal_(head.bias)
    found = logprobs_of(hidden, head, targets)
    torch.testing.assert_close(found, plain(hidden, head, targets, 1.0))


def test_compiled_kernels_give_the_same_for_any_number_of_rows(monkeypatch):
    monkeypatch.setattr(logprobs, "CHUNK", 8)
    compiled = Kernels(
        torch.compile(logprobs.reduce, backend="aot_eager"),
        torch.compile(logprobs.differentiate, backend="aot_eager"),
    )
    hidden, head, targets, weights = case(torch.float32)
    for rows in (3, 2, 1):
        found = []
        for kernels in (Kernels(), compiled):
            values = logprobs_of(hidden[:rows], head, targets[:rows], 1.0, kernels)
            grad = torch.autograd.grad((values * weights[:rows]).sum(), head.weight)[0]
            found.append((values.detach(), grad))
        torch.testing.assert_close(found[0], found[1])


def test_nothing_to_learn_gives_zeros():
    hidden, head, targets, _ = case(torch.float32)
    values = logprobs_of(hidden, head, torch.full_like(targets, IGNORED))
    assert not values.any()
    values.sum().backward()
    assert not head.weight.grad.any()


@pytest.mark.parametrize("bias", [False, True])
def test_ids_beyond_a_vocabulary_have_no_probability(monkeypatch, bias):
    """As if the head had no rows for them."""
    monkeypatch.setattr(logprobs, "CHUNK", 8)
    hidden, head, targets, weights = case(torch.float32)
    targets = targets.clamp_max(59)
    if bias:
        head.bias = torch.nn.Parameter(torch.arange(97.0) / 10)
    smaller = Linear(16, 60, bias)
    smaller.weight.data = head.weight.data[:60].clone()
    if bias:
        smaller.bias.data = head.bias.data[:60].clone()
    found = logprobs_of(hidden, head, targets, 0.7, vocabulary=60)
    expected = logprobs_of(hidden, smaller, targets, 0.7)
    torch.testing.assert_close(found, expected)
    ours, theirs = (
        torch.autograd.grad((values * weights).sum(), (hidden, module.weight))
        for values, module in ((found, head), (expected, smaller))
    )
    torch.testing.assert_close(ours[0], theirs[0])
    torch.testing.assert_close(ours[1][:60], theirs[1])
    assert not ours[1][60:].any()


@pytest.mark.parametrize(("frozen", "matmuls"), [("none", 3), ("head", 2), ("hidden", 2)])
def test_what_is_frozen_takes_no_matmul(frozen, matmuls):
    hidden, head, targets, weights = case(torch.float32)
    expected = torch.autograd.grad((plain(hidden, head, targets, 1.0) * weights).sum(), hidden)[0]
    hidden.requires_grad_(frozen != "hidden")
    head.weight.requires_grad_(frozen != "head")
    known = (targets != IGNORED).sum()
    with FlopCounterMode(display=False) as counted:
        (logprobs_of(hidden, head, targets) * weights).sum().backward()
    rows = -(-int(known) // logprobs.ROUND) * logprobs.ROUND
    assert counted.get_total_flops() == matmuls * 2 * rows * 16 * 97
    if frozen != "hidden":
        torch.testing.assert_close(hidden.grad, expected)
    assert (head.weight.grad is None) == (frozen == "head")
