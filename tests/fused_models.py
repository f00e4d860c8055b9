"""Models for the fused decoding step, in every shape and kind of weights that it computes."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from culm.adapt.multi_lora import adapter_names, adapter_rows
from culm.adapt.quantize.int4 import Int4
from culm.adapt.quantize.int8 import Int8
from culm.compiled import instruction_set
from culm.convert.weights import set_precision
from culm.engine.fused import FusedDecoder
from culm.engine.fused_library import no_library
from culm.engine.fused_support import obstacle
from culm.model.attention.gqa import GQA
from culm.model.block import Residual
from culm.model.cache import Cache
from culm.model.context import Context
from culm.model.init import Llama
from culm.model.mlp.gated import GeGLU, SwiGLU
from culm.model.norm import RMSNormConfig
from culm.model.quantized_cache import CacheKind
from culm.model.rope import Rope
from culm.model.scaling import CompleteP
from culm.model.transformer import Transformer, TransformerConfig

here = pytest.mark.skipif(no_library() is not None, reason=str(no_library()))
# Rows whose results do not depend on how many others there are: with AMX one row is another case.
FEWEST = 2 if no_library() is None and instruction_set().name == "AMX" else 1

NARROW = GQA(heads=6, kv_heads=2, window=5, sink_tokens=2)
SHAPES = {
    "windows": {"attention": (NARROW, GQA(heads=4, head_dim=48, window=7, rope=None))},
    "as Gemma 2": {
        "attention": (
            GQA(heads=6, kv_heads=3, window=6, softcap=2.0, scale=0.2),
            GQA(heads=6, kv_heads=3, softcap=2.0, scale=0.2),
        ),
        "mlp": (GeGLU(),),
        "norm": RMSNormConfig(centered=True),
        "residual": Residual(norm="both"),
        "embedding_scale": 192**0.5,
        "softcap": 3.0,
    },
    "as OLMo 2": {
        "attention": (GQA(heads=6, kv_heads=2, qk_norm="width"),),
        "residual": Residual(norm="behind"),
    },
    "partial rotation": {
        "attention": (GQA(heads=6, rope=Rope(fraction=0.4), bias=True, out_bias=True),),
        "scaling": CompleteP(base_width=48, base_depth=1),
        "init": Llama(),
    },
    "grouped": {"attention": (GQA(heads=6, kv_heads=2, qk_norm="head"),), "tied": True},
    "many heads": {"attention": (GQA(heads=6, head_dim=48, bias=True),), "tied": False},
    "layers differ": {
        "attention": (
            GQA(heads=3, kv_heads=1, window=64),  # as long as the cache: one that is not rolling
            GQA(heads=6, head_dim=16, rope=Rope(base=500)),
        ),
        "mlp": (SwiGLU(hidden=160),),
    },
}
WEIGHTS = {"bf16": None, "int8": Int8(), "int4": Int4(), "int4 of 64": Int4(group=64)}

GROUPED = {"int8": 16, "int4": 32, "int4 of 64": 32}  # activations that share a scale, by weights


def in_groups(x: Tensor, size: int) -> Tensor:
    """Activations in int8, with one scale for each `size` of them."""
    groups = x.unflatten(-1, (-1, size))
    scale = groups.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
    return ((groups / scale).round() * scale).flatten(-2)


def build(shape: str, weights: str) -> Transformer:
    config = TransformerConfig(vocabulary=77, width=192, layers=3, context=64, **SHAPES[shape])
    model = config.build(seed=1).eval()
    generator = torch.Generator().manual_seed(2)
    for name, weight in model.named_parameters():
        weight.data = weight.data * 3 if weight.ndim == 2 else weight.data
        if "norm" in name or "bias" in name:
            weight.data += 0.3 * torch.randn(weight.shape, generator=generator)
    set_precision(model, torch.bfloat16)
    model.dtype = torch.bfloat16
    if WEIGHTS[weights]:
        WEIGHTS[weights].apply(model)
    return model


Change = Callable[[Transformer], object]


def checked_steps(
    shape: str,
    weights: str,
    lengths: Sequence[int],
    kind: CacheKind = "plain",
    change: Change = lambda model: None,
    adapters: Sequence[str | None] = (),
) -> tuple[Cache, Cache]:
    """Decode four tokens after prompts of these lengths: logits are those of the model, at most a
    little farther from those of fp32. Returns the caches, fused and not.

    change: adds adapters to a model; adapters: of each row, by name.
    """
    model, exact = build(shape, weights), build(shape, weights)
    change(model), change(exact.float())
    exact.dtype = torch.float32
    rows, longest = len(lengths), max(lengths)
    readers = [(model, model.cache(rows, longest + 4, kind)) for _ in range(2)]
    readers.append((exact, exact.cache(rows, longest + 4, kind)))
    chosen = adapter_rows(adapters, adapter_names(model), torch.device("cpu"))
    generator = torch.Generator().manual_seed(3)
    prompts = torch.randint(0, 77, (rows, longest), generator=generator)
    positions, ends = torch.arange(longest).expand(rows, -1), torch.tensor(lengths)
    assert obstacle(*readers[0]) is None
    decoder = FusedDecoder(*readers[0])
    for reader, cache in readers:
        view = cache.view(longest, ends=ends)
        reader.hidden(prompts, Context(positions, cache=view, adapters=chosen))
    for step in range(4):
        if kind != "plain":  # codes differ by the last bits of keys: all read the same ones
            for _, cache in (readers[0], readers[2]):
                for layer, other in zip(cache.layers, readers[1][1].layers, strict=True):
                    for tensor, source in zip(layer.tensors, other.tensors, strict=True):
                        tensor.copy_(source)
        tokens = torch.randint(0, 77, (rows,), generator=generator)
        found = decoder(tokens.tolist(), (ends + step).tolist(), adapters)
        plain, right = (
            reader(tokens[:, None], Context(
                (ends + step)[:, None], cache=cache.view(longest + 4), adapters=chosen
            ))[:, 0]
            for reader, cache in readers[1:]
        )  # fmt: skip
        # The step that fills a group still reads it exactly; of int4 this is more than rounding.
        alike = (ends + step) % 32 < (31 if kind == "int4" else 32)
        found, plain, right = found[alike], plain[alike], right[alike]
        error, usual = (found - right).norm(), (plain - right).norm()
        # Beside weights of few bits activations are int8 in groups, a little coarser than bf16.
        assert error <= (1.1 if weights == "bf16" else 2.5) * usual
        print(shape, weights, kind, float(error / right.norm()), float(usual / right.norm()))
    return readers[0][1], readers[1][1]
