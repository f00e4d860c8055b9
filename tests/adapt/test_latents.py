"""Latent attention uses the weights of two projections, also of adapted and quantised layers."""

import pytest
import torch

from culm.adapt.lora import LoRA, adapters_of
from culm.adapt.quantize.int4 import Int4
from culm.adapt.quantize.int8 import Int8
from culm.adapt.quantize.nf4 import NF4
from culm.adapt.quantize.qat import fake_quantize
from culm.model.attention.mla import MLA
from culm.model.context import Context
from culm.model.linear import Linear
from culm.model.transformer import Transformer, TransformerConfig


def shaken(model: Transformer) -> None:
    for layer in adapters_of(model).values():
        torch.nn.init.normal_(layer.b, std=0.1)
        if layer.magnitude is not None:
            layer.magnitude.data.mul_(torch.rand_like(layer.magnitude) + 0.5)


def lora(model: Transformer, **settings) -> None:
    LoRA(rank=4, targets=("blocks.*.attention.{k,v,out}",), **settings).apply(model, 0)
    shaken(model)


def qlora(model: Transformer) -> None:
    NF4(block=32).apply(model)
    lora(model)


CHANGES = {
    "int8": lambda model: Int8().apply(model),
    "int4": lambda model: Int4(group=32).apply(model),
    "lora": lora,
    "dora": lambda model: lora(model, dora=True),
    "qlora": qlora,
    "trained for int8": lambda model: fake_quantize(model, [Int8()]),
}


def cached(model: Transformer, tokens: torch.Tensor) -> torch.Tensor:
    """Logits (B, T, V), three tokens at a time."""
    cache = model.cache(*tokens.shape)
    parts = []
    for start in range(0, tokens.shape[1], 3):
        positions = torch.arange(start, start + 3).expand(len(tokens), -1)
        context = Context(positions, cache=cache.view(start + 3))
        parts.append(model(tokens[:, start : start + 3], context))
    return torch.cat(parts, 1)


@pytest.mark.parametrize("name", CHANGES)
@torch.no_grad()
def test_cached_equals_uncached(name: str) -> None:
    attention = MLA(heads=2, rank=32, head_dim=16, rope_dim=8, value_dim=16)
    settings = {"vocabulary": 50, "width": 32, "layers": 2, "context": 32, "attention": attention}
    model = TransformerConfig(**settings).build(seed=1).eval()
    tokens = torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(0))
    before = model(tokens)
    CHANGES[name](model)
    whole = model(tokens)
    assert (whole - before).abs().max() > 1e-3
    torch.testing.assert_close(cached(model, tokens), whole, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_matrix_gives_the_weights_of_the_forward() -> None:
    """Of every layer that can stand for a linear one."""
    for name, change in CHANGES.items():
        attention = MLA(heads=2, rank=32, head_dim=16, rope_dim=8, value_dim=16)
        settings = {"vocabulary": 50, "width": 32, "layers": 1, "attention": attention}
        model = TransformerConfig(**settings).build(seed=1).eval()
        change(model)
        layer = model.blocks[0].attention.k
        assert type(layer) is not Linear
        x = torch.randn(5, 32)
        torch.testing.assert_close(x @ layer.matrix().T, layer(x), atol=1e-5, rtol=1e-4, msg=name)
