"""Which models and caches the fused step computes; all others decode in PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from culm.adapt.lora import LoRALinear
from culm.adapt.multi_lora import MultiLoRALinear
from culm.adapt.quantize.int4 import Int4Linear
from culm.adapt.quantize.int8 import Int8Linear
from culm.adapt.quantize.linear import QuantizedLinear
from culm.config import Config
from culm.engine.fused_library import no_library
from culm.model.attention.gqa import GQA, GroupedQueryAttention
from culm.model.block import Block, Residual
from culm.model.cache import Cache, FullCache, RollingCache
from culm.model.linear import Linear
from culm.model.mlp.gated import GatedFeedForward, GeGLU, SwiGLU
from culm.model.norm import RMSNorm, RMSNormConfig
from culm.model.quantized_cache import QuantizedCache
from culm.model.rope import Rotation
from culm.model.transformer import Transformer, TransformerConfig

# Settings that may have any value; the others must have their defaults.
COMPUTED: dict[type[Config], frozenset[str]] = {
    TransformerConfig: frozenset({
        "vocabulary", "width", "layers", "context", "attention", "mlp", "norm", "residual",
        "embedding_scale", "head_scale", "softcap", "tied", "init",
    }),
    GQA: frozenset({
        "heads", "kv_heads", "head_dim", "qk_norm", "bias", "out_bias", "window", "sink_tokens",
        "softcap", "scale", "rope",
    }),
    SwiGLU: frozenset({"hidden"}),
    GeGLU: frozenset({"hidden"}),
    RMSNormConfig: frozenset({"eps", "centered"}),
    Residual: frozenset({"norm", "scale", "dropout"}),
}  # fmt: skip
MODULES = {
    *(Transformer, Block, GroupedQueryAttention, GatedFeedForward, RMSNorm, Rotation),
    *(Linear, Int8Linear, Int4Linear, nn.Embedding, nn.ModuleList, nn.Identity),
    *(LoRALinear, MultiLoRALinear),
}
KINDS: dict[type[nn.Module], int] = {Linear: 0, Int8Linear: 1, Int4Linear: 2}  # `Kind` in C++
FP32 = 3  # the same, of adapters


def computes_in_bf16(model: Transformer) -> bool:
    """Whether the model is one for which a fused step exists at all: bf16, on a CPU."""
    weights = model.embed.weight
    return weights.device.type == "cpu" and {weights.dtype, model.dtype} == {torch.bfloat16}


def obstacle(model: Transformer, cache: Cache) -> str | None:
    """What keeps the fused step from decoding with this model and cache; None: nothing does."""
    if not computes_in_bf16(model):
        return "it needs a model that computes in bf16 on a CPU"
    return next(_obstacles(model, cache), None) or no_library()


def _obstacles(model: Transformer, cache: Cache) -> Iterator[str]:
    for store in cache.layers:
        if type(store) not in (FullCache, RollingCache, QuantizedCache):
            yield f"it does not read a {type(store).__name__}"
    yield from uncomputed(model.config.resolved())
    for module in model.modules():
        if type(module) not in MODULES:
            yield f"it does not compute {type(module).__name__}"
        if isinstance(module, LoRALinear) and module.magnitude is not None:
            yield "it does not compute an adapter with dora=true, whose norms may change; merge it"
        if isinstance(module, MultiLoRALinear) and isinstance(module.base, LoRALinear):
            yield "it does not compute several adapters on top of another one; merge that one"
    for name, block in model.blocks.named_children():
        assert isinstance(block, Block)
        yield from _shapes(block, f"blocks.{name}")
    yield from _inputs("head", model.head)


def uncomputed(config: Config, path: str = "") -> Iterator[str]:
    """Settings, among them those of parts, that the step does not know."""
    known = COMPUTED.get(type(config))
    if known is None:
        yield f"it does not compute {path}kind={_short(config)}"
        return
    for name, value in config:
        if name not in known and value != type(config).model_fields[name].default:
            yield f"it does not compute {path}{name}={_short(value)}"
        elif name in ("attention", "mlp", "norm", "residual") and path == "":
            for part in value if isinstance(value, tuple) else (value,):
                yield from uncomputed(part, f"{name}.")


def _short(value: object) -> str:
    """A value as a message names it; of settings the kind, since all of them fill a screen."""
    if isinstance(value, tuple) and value:
        return _short(value[0])
    return str(getattr(value, "kind", type(value).__name__) if isinstance(value, Config) else value)


def _shapes(block: Block, name: str) -> Iterator[str]:
    """Shapes that do not fill the registers, and layers in different forms."""
    attention, mlp = block.attention, block.mlp
    assert isinstance(attention, GroupedQueryAttention)
    assert isinstance(mlp, GatedFeedForward)
    if attention.head_dim % 16:
        yield f"it needs a head_dim that 16 divides, which {attention.head_dim} is not"
    yield from _inputs(f"{name}.attention", attention.q, attention.k, attention.v)
    yield from _inputs(f"{name}.attention.out", attention.out)
    yield from _inputs(f"{name}.mlp", mlp.gate, mlp.up)
    yield from _inputs(f"{name}.mlp.down", mlp.down)


def _inputs(name: str, *layers: nn.Module) -> Iterator[str]:
    """Layers that share an input must need it in one form."""
    forms = set()
    for layer in map(base_of, layers):
        forms.add((type(layer), layer.group if isinstance(layer, Int4Linear) else 0))
        if type(layer) is Linear and layer.weight.dtype != torch.bfloat16:
            yield f"it needs {name} in bf16"
        if not layer.weight.is_contiguous():
            yield f"it needs the weights of {name} in one piece"
        if layer.in_features % 32:
            yield f"it needs inputs of {name} that 32 divides, which {layer.in_features} is not"
    if len(forms) > 1:
        yield f"it needs all layers of {name} quantised alike"


def base_of(layer: nn.Module) -> Linear | QuantizedLinear:
    """A linear layer without its adapters."""
    base = layer.base if isinstance(layer, LoRALinear | MultiLoRALinear) else layer
    assert isinstance(base, Linear | QuantizedLinear)
    return base
