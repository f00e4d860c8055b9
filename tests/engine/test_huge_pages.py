"""Weights in one block of memory: the same values and objects, and a model that still works."""

import mmap

import pytest
import torch
from torch import nn

from culm.adapt.quantize.int8 import Int8
from culm.engine.huge_pages import PAGE, use_huge_pages
from culm.model.attention.gqa import GQA
from culm.model.transformer import Transformer, TransformerConfig
from culm.safetensors import read_safetensors, write_safetensors

here = pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="no huge pages to ask for")


def build() -> Transformer:
    return TransformerConfig(vocabulary=50, width=64, layers=2, attention=(GQA(heads=4),)).build()


@here
@pytest.mark.parametrize("inference", [False, True])
def test_values_ties_and_objects_stay(inference: bool, tmp_path) -> None:
    model = build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    objects = {name: id(parameter) for name, parameter in model.named_parameters()}
    with torch.inference_mode(inference):
        assert use_huge_pages(model)
        assert use_huge_pages(model)  # again: nothing to do
    assert min(tensor.data_ptr() for tensor in model.parameters()) % PAGE == 0
    assert model.head.weight is model.embed.weight
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == objects
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    model(torch.tensor([[1, 2]])).sum().backward()  # still trainable
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert not torch.equal(model.embed.weight, before["embed.weight"])
    kept = {name: tensor for name, tensor in model.state_dict().items() if name != "head.weight"}
    write_safetensors(tmp_path / "m.safetensors", kept)
    for name, tensor in read_safetensors(tmp_path / "m.safetensors"):
        assert torch.equal(tensor, model.state_dict()[name])


@here
def test_quantised_layers_and_kinds_of_tensors() -> None:
    model = build()
    Int8().apply(model)
    model.register_buffer("empty", torch.empty(0))
    model.register_parameter("turned", nn.Parameter(torch.randn(6, 4).T))
    tokens = torch.tensor([[1, 2, 3]])
    before, turned = model(tokens), model.turned.clone()
    assert use_huge_pages(model)
    assert torch.equal(model(tokens), before)
    assert torch.equal(model.turned, turned)


@here
def test_weights_are_moved_once() -> None:
    """A decoder that has their addresses may be in use when another one is made."""
    model = build()
    assert use_huge_pages(model)
    address = model.embed.weight.data_ptr()
    model.register_buffer("later", torch.ones(3))
    assert use_huge_pages(model)
    assert model.embed.weight.data_ptr() == address
