"""Sizes of one model: they grow in one shape, and every part is allowed."""

from itertools import islice
from unittest.mock import Mock

import pytest

from culm.compose import compose
from culm.config import SettingError, parse
from culm.model.transformer import TransformerConfig
from culm.plan import family
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


def test_a_part_that_allows_no_width_is_said(monkeypatch):
    """In place of a search without end."""
    error = SettingError("attention: no width is right")
    monkeypatch.setattr(family, "resized", Mock(side_effect=error))
    with pytest.raises(SettingError, match="no width is right"):
        next(sizes_of(model("nano")))
