"""The decoding step of a model as one C++ function (`fused.cpp`), on machines that support it.

It needs a CPU with AVX-512 (bf16, VNNI), a C++ compiler at the first use (`fused_library`), and a
model in bf16 or with int8 or int4 weights. Everything else decodes in PyTorch. Results are equal up
to rounding: in bf16 this step is the more exact one; with quantised weights it rounds activations
to int8 in groups of 32, like llama.cpp.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_double, c_int64, c_void_p

import torch
from torch import Tensor, nn

from culm.adapt.quantize.int4 import Int4Linear
from culm.adapt.quantize.int8 import Int8Linear
from culm.adapt.quantize.linear import QuantizedLinear
from culm.engine.fused_library import has_library, library
from culm.model.attention.gqa import GQA, GroupedQueryAttention
from culm.model.block import Block
from culm.model.cache import Cache, FullCache
from culm.model.layer_cache import LayerCache
from culm.model.linear import Linear
from culm.model.mlp.gated import GatedFeedForward, SwiGLU
from culm.model.norm import RMSNorm, RMSNormConfig
from culm.model.rope import Rope, Rotation
from culm.model.transformer import Transformer, TransformerConfig

ROWS = 16  # maximum of a step; with more rows, general matmuls are faster
SUPPORTED = {  # modules; a model with any other module decodes in PyTorch
    *(Transformer, Block, GroupedQueryAttention, GatedFeedForward, RMSNorm, Rotation),
    *(Linear, Int8Linear, Int4Linear, nn.Embedding, nn.ModuleList, nn.Identity),
}


class _Linear(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("kind", "outputs", "inputs", "group")),
        *((name, c_void_p) for name in ("weight", "scale", "zero", "bias")),
    ]


class _Layer(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("heads", "kv_heads", "dim")),
        *((name, c_void_p) for name in ("attention_norm", "mlp_norm", "q_norm", "k_norm")),
        *((name, c_void_p) for name in ("cosines", "sines", "keys", "values")),
        *((name, _Linear) for name in ("q", "k", "v", "out", "gate", "up", "down")),
    ]


class _Model(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("width", "layers", "length")),
        ("eps", c_double),
        ("embedding", c_void_p),
        ("norm", c_void_p),
        ("head", _Linear),
        ("layer", POINTER(_Layer)),
    ]


class FusedDecoder:
    """Decodes with a model's own weights and cache, which must not be replaced meanwhile."""

    def __init__(self, model: Transformer, cache: Cache) -> None:
        self._held: list[Tensor] = []  # tensors that only pointers refer to
        self._copies: list[Tensor] = []  # fp32 copies of norms and biases
        self._originals: list[Tensor] = []
        self._vocabulary = model.config.vocabulary
        positions = torch.arange(cache.length)[None]
        angles = [tuple(map(self._fp32, rotation(positions))) for rotation in model.rotations]
        layers = (_Layer * len(cache.layers))(
            *(
                self._layer(b, store, angles)
                for b, store in zip(_blocks(model), cache.layers, strict=True)
            )
        )
        self._model = _Model(
            model.config.width, len(layers), cache.length, model.config.norm.eps,
            model.embed.weight.data_ptr(), self._norm(model.norm), self._linear(model.head), layers,
        )  # fmt: skip

    def __call__(self, tokens: list[int], positions: list[int]) -> Tensor:
        """Put token i into slot i at its position; logits (N, V) fp32 of the next tokens."""
        torch._foreach_copy_(self._copies, self._originals)  # they may have changed since
        rows, integers = len(tokens), c_int64 * len(tokens)
        logits = torch.empty(rows, self._vocabulary)
        library().culm_decode(
            ctypes.byref(self._model), rows, integers(*tokens), integers(*positions),
            c_void_p(logits.data_ptr()), torch.get_num_threads(),
        )  # fmt: skip
        return logits

    def _layer(self, block: Block, store: LayerCache, angles: list[tuple[int, ...]]) -> _Layer:
        attention, mlp = block.attention, block.mlp
        assert isinstance(attention, GroupedQueryAttention)
        assert isinstance(mlp, GatedFeedForward)
        assert attention.rotation is not None
        keys, values = store.tensors
        linears = (
            attention.q, attention.k, attention.v, attention.out, mlp.gate, mlp.up, mlp.down,
        )  # fmt: skip
        norms = (block.attention_norm, block.mlp_norm, attention.q_norm, attention.k_norm)
        return _Layer(
            attention.q.out_features // attention.head_dim, attention.kv_heads, attention.head_dim,
            *map(self._norm, norms), *angles[attention.rotation],
            keys.data_ptr(), values.data_ptr(), *map(self._linear, linears),
        )  # fmt: skip

    def _norm(self, norm: nn.Module) -> int | None:
        return self._fp32(norm.weight) if isinstance(norm, RMSNorm) else None

    def _linear(self, layer: nn.Module) -> _Linear:
        assert isinstance(layer, Linear | QuantizedLinear)
        group, scale, zero = 0, None, None
        if isinstance(layer, Int8Linear):
            scale = layer.scale.data_ptr()
        elif isinstance(layer, Int4Linear):
            group, scale, zero = layer.group, layer.scale.data_ptr(), layer.zero.data_ptr()
        bias = None if layer.bias is None else self._fp32(layer.bias)
        return _Linear(
            _kind(layer), layer.out_features, layer.in_features, group,
            layer.weight.data_ptr(), scale, zero, bias,
        )  # fmt: skip

    def _fp32(self, tensor: Tensor) -> int:
        held = tensor.detach().float().contiguous()
        self._held.append(held)
        if held.data_ptr() != tensor.data_ptr():
            self._copies.append(held)
            self._originals.append(tensor.detach())
        return held.data_ptr()


def fuses(model: Transformer, cache: Cache) -> bool:
    """Whether the fused step supports this model and cache on this machine."""
    on_cpu = model.device.type == "cpu" and model.dtype == torch.bfloat16
    full = all(type(layer) is FullCache for layer in cache.layers)
    in_bf16 = on_cpu and full and model.embed.weight.dtype == torch.bfloat16
    return in_bf16 and _known(model.config) and _fits(model) and has_library()


def _known(config: TransformerConfig) -> bool:
    """Whether the config uses supported settings only: it equals one built from these alone."""
    given = config.resolved()
    attentions = [part for part in given.attention if isinstance(part, GQA) and part.rope]
    hiddens = [part.hidden for part in given.mlp if type(part) is SwiGLU]
    if len(attentions) != len(given.attention) or len(hiddens) != len(given.mlp):
        return False
    known = TransformerConfig(
        vocabulary=given.vocabulary,
        width=given.width,
        layers=given.layers,
        context=given.context,
        attention=tuple(
            GQA(
                heads=a.heads, kv_heads=a.kv_heads, head_dim=a.head_dim, bias=a.bias,
                qk_norm="head" if a.qk_norm else None, window=a.window,
                rope=Rope(base=a.rope.base, scaling=a.rope.scaling),  # type: ignore[union-attr]
            )
            for a in attentions
        ),
        mlp=tuple(SwiGLU(hidden=hidden) for hidden in hiddens),
        norm=RMSNormConfig(eps=given.norm.eps),
        tied=given.tied,
        init=given.init,
    )  # fmt: skip
    return known.resolved() == given


def _blocks(model: Transformer) -> list[Block]:
    return [block for block in model.blocks if isinstance(block, Block)]


def _fits(model: Transformer) -> bool:
    """Whether all modules are supported, in shapes that fill the registers."""
    known = {type(module) for module in model.modules()} <= SUPPORTED
    return known and all(map(_fits_block, _blocks(model))) and _one_form(model.head)


def _fits_block(block: Block) -> bool:
    attention, mlp = block.attention, block.mlp
    assert isinstance(attention, GroupedQueryAttention)
    assert isinstance(mlp, GatedFeedForward)
    groups = (
        (attention.q, attention.k, attention.v), (attention.out,), (mlp.gate, mlp.up), (mlp.down,)
    )  # fmt: skip
    return attention.head_dim % 16 == 0 and all(_one_form(*group) for group in groups)


def _one_form(*layers: nn.Module) -> bool:
    """Whether layers that share an input are supported, and need it in the same form."""
    forms = {
        (_kind(layer), layer.group if isinstance(layer, Int4Linear) else 0) for layer in layers
    }
    return len(forms) == 1 and all(
        isinstance(layer, Linear | QuantizedLinear)
        and _kind(layer) is not None
        and layer.weight.is_contiguous()
        and layer.in_features % 32 == 0
        for layer in layers
    )


def _kind(layer: nn.Module) -> int | None:
    """`Kind` in the C++ file; None: not supported."""
    if type(layer) is Linear:
        return 0 if layer.weight.dtype == torch.bfloat16 else None
    return 1 if type(layer) is Int8Linear else 2 if type(layer) is Int4Linear else None
