"""The full model: causality, initial weights, shapes."""

import math

import pytest
import torch

from culm.model.attention.gqa import GQA
from culm.model.transformer import TransformerConfig


def config(**more) -> TransformerConfig:
    attention = GQA(heads=4, kv_heads=2, qk_norm="head")
    settings = {"vocabulary": 50, "width": 32, "layers": 3, "context": 32, "attention": attention}
    return TransformerConfig(**{**settings, **more})


@pytest.mark.parametrize("backend", ["sdpa", "blocks"])
def test_the_future_changes_nothing(backend) -> None:
    model = config().build()
    model.set_backend(backend)
    tokens = torch.randint(0, 50, (2, 20), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 12:] = (changed[:, 12:] + 1) % 50
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :12], after[:, :12])
    assert (before[:, 12:] != after[:, 12:]).any(-1).all()


def test_a_new_model_knows_nothing() -> None:
    """At initialisation the loss is that of guessing: log of the vocabulary."""
    model = config(width=64).build()
    tokens = torch.randint(0, 50, (4, 32), generator=torch.Generator().manual_seed(0))
    loss = -model.logprobs(tokens[:, :-1], tokens[:, 1:]).mean().detach()
    assert float(loss) == pytest.approx(math.log(50), abs=0.05)


def test_weights_depend_on_seed_and_name_alone() -> None:
    small, deep = config(layers=2).build(seed=1), config(layers=4).build(seed=1)
    other = config(layers=2).build(seed=2)
    name = "blocks.1.attention.q.weight"
    assert torch.equal(small.get_parameter(name), deep.get_parameter(name))
    assert not torch.equal(small.get_parameter(name), other.get_parameter(name))


def test_tied_weights_are_one_tensor() -> None:
    tied, untied = config().build(), config(tied=False).build()
    assert tied.head.weight is tied.embed.weight
    assert untied.head.weight is not untied.embed.weight


def test_a_list_of_parts_repeats_over_the_layers() -> None:
    parts = (GQA(heads=4, window=8), GQA(heads=2, kv_heads=1))
    model = config(attention=parts, layers=5).build()
    assert [block.attention.config.window for block in model.blocks] == [8, None, 8, None, 8]
    assert len(model.rotations) == 2  # one for each size of head


def test_impossible_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"kv_heads: 3 does not divide heads=4"):
        GQA(heads=4, kv_heads=3)
    with pytest.raises(ValueError, match=r"attention\[0\]\.heads: 5 does not divide width=32"):
        config(attention=GQA(heads=5))
