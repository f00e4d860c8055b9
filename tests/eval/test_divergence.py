"""Divergence against its definition, and what must hold of it."""

import math

import pytest
import torch

from culm.adapt.quantize.int4 import Int4
from culm.adapt.quantize.int8 import Int8
from culm.config import parse
from culm.eval import divergence
from culm.eval.divergence import compare
from culm.model.transformer import Transformer, TransformerConfig


def build(seed: int = 1) -> Transformer:
    values = {
        "vocabulary": 96, "width": 64, "layers": 2, "tied": False,
        "attention": {"kind": "gqa", "heads": 4}, "mlp": {"kind": "swiglu", "hidden": 96},
    }  # fmt: skip
    return parse(TransformerConfig, values).build(seed)


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 96, (5, 17), generator=torch.Generator().manual_seed(0))


def test_a_model_is_itself(tokens):
    found = compare(build(), build(), tokens)
    assert found.tokens == 5 * 16
    assert found.divergence == 0
    assert found.agreement == 1
    assert found.loss == found.changed
    assert found.perplexity == found.changed_perplexity == math.exp(found.loss)


def test_numbers_are_those_of_the_definition(tokens):
    original, other = build(1), build(2)
    original.head.weight.data *= 30
    found = compare(original, other, tokens)
    with torch.no_grad():
        p, q = (model(tokens[:, :-1]).double().softmax(-1) for model in (original, other))
    targets = tokens[:, 1:, None]
    assert found.loss == pytest.approx(float(-p.gather(-1, targets).log().mean()), rel=1e-5)
    assert found.changed == pytest.approx(float(-q.gather(-1, targets).log().mean()), rel=1e-5)
    assert found.divergence == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-5)
    assert found.agreement == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    back = compare(other, original, tokens)
    assert back.divergence != pytest.approx(found.divergence, rel=1e-2)  # it has a direction
    assert (back.loss, back.changed) == pytest.approx((found.changed, found.loss))


def test_batches_make_no_difference(tokens, monkeypatch):
    original, other = build(1), build(2)
    whole = compare(original, other, tokens)
    monkeypatch.setattr(divergence, "LOGITS", 1)  # one row at a time
    rows = compare(original, other, tokens)
    assert rows.tokens == whole.tokens
    assert rows.divergence == pytest.approx(whole.divergence, rel=1e-6)
    assert rows.loss == pytest.approx(whole.loss, rel=1e-6)


def test_fewer_bits_are_further_away(tokens):
    fine, coarse = build(), build()
    Int8().apply(fine)
    Int4(targets=("blocks.*", "head")).apply(coarse)
    near, far = (compare(build(), model, tokens) for model in (fine, coarse))
    assert 0 < near.divergence < 0.1 * far.divergence
    assert near.agreement >= far.agreement
