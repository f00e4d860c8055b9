import pytest
from torch import nn

from culm.adapt.replace import linears, replace
from culm.model.norm import RMSNorm


def names(model, *patterns):
    match = linears(model, patterns)
    return [name for name, module in model.named_modules() if match(name, module)]


def test_patterns(tiny):
    model = tiny()
    assert names(model, "blocks.*.attention.{q,v}", "head") == [
        "blocks.0.attention.q",
        "blocks.0.attention.v",
        "blocks.1.attention.q",
        "blocks.1.attention.v",
        "head",
    ]
    assert len(names(model, "blocks.*")) == 14


def test_a_pattern_that_names_nothing(tiny):
    with pytest.raises(ValueError, match=r"targets: 'blocks\.\*\.query' names no layer; known: bl"):
        linears(tiny(), ["blocks.*", "blocks.*.query"])


def test_replace_swaps_the_outermost(tiny):
    model = tiny()
    assert replace(model, lambda name, _: name.endswith("mlp"), lambda *_: nn.Identity()) == 2
    assert isinstance(model.blocks[0].mlp, nn.Identity)
    assert replace(model, lambda name, _: name.startswith("blocks"), lambda *_: nn.Identity()) == 1


def test_nothing_matched(tiny):
    with pytest.raises(ValueError, match="no module of this Transformer"):
        replace(tiny(), lambda _, m: isinstance(m, nn.Conv1d), lambda *_: RMSNorm(1))
