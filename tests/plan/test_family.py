"""Sizes of one model: they grow in one shape, and every part is allowed."""

from itertools import islice

import pytest

from culm.compose import compose
from culm.config import parse
from culm.model.transformer import TransformerConfig
from culm.plan.family import resized, sizes_of


def model(name):
    return parse(TransformerConfig, compose(name, "model").values)


@pytest.mark.parametrize("name", ["nano", "tiny", "small", "125m", "demo", "moe-tiny"])
def test_sizes_grow_in_one_shape(name):
    base, found = model(name), list(islice(sizes_of(model(name)), 8))
    assert [one.width for one in found] == sorted({one.width for one in found})
    heads = {one.attention[0].dim(one.width) for one in found}
    assert heads == {base.attention[0].dim(base.width)}
    assert {one.vocabulary for one in found} == {base.vocabulary}
    counts = [sum(p.numel() for p in one.build(device="meta").parameters()) for one in found]
    assert counts == sorted(counts)


def test_the_same_width_is_the_same_model():
    for name in ("nano", "tiny", "125m"):
        assert resized(model(name), model(name).width) == model(name)
