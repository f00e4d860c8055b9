"""The decoding step of a model as one C++ function (`fused.cpp`), on machines that support it.

It needs a C++ compiler at the first use (`fused_library`), a CPU that `culm.compiled` knows, and a
model in bf16 or with int8 or int4 weights, of which `fused_support` knows the settings. Everything
else decodes in PyTorch. Results are equal up to rounding: in bf16 this step is the more exact one;
with quantised weights it rounds activations to int8, with a scale for each 16 (int8) or 32
(int4) of them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from ctypes import addressof, c_double, c_int64, c_void_p

import torch
from torch import Tensor, nn

from culm.adapt.lora import LoRALinear
from culm.adapt.multi_lora import MultiLoRALinear, adapter_names
from culm.adapt.quantize.int4 import Int4Linear
from culm.adapt.quantize.int8 import Int8Linear
from culm.engine.fused_library import library
from culm.engine.fused_structs import (
    AdaptersStruct,
    LayerStruct,
    LinearStruct,
    ModelStruct,
    cache_struct,
)
from culm.engine.fused_support import FP32, KINDS, base_of, computes_in_bf16, obstacle
from culm.engine.huge_pages import use_huge_pages
from culm.log import say
from culm.model.activation import Activation
from culm.model.attention.gqa import GroupedQueryAttention
from culm.model.block import Block
from culm.model.cache import Cache
from culm.model.layer_cache import LayerCache
from culm.model.linear import Linear
from culm.model.logprobs import capped
from culm.model.mlp.gated import GatedFeedForward
from culm.model.norm import RMSNorm
from culm.model.quantized_cache import GROUP, QuantizedCache
from culm.model.transformer import Transformer

ACTIVATIONS: tuple[Activation, ...] = ("silu", "gelu_tanh")  # `Activation` in C++


class FusedDecoder:
    """Decodes with a model's own weights and cache, which must not be replaced meanwhile."""

    def __init__(self, model: Transformer, cache: Cache) -> None:
        self.has_adapters = any(
            isinstance(module, LoRALinear | MultiLoRALinear) for module in model.modules()
        )
        use_huge_pages(model)
        self._held: list[object] = [model, cache]  # what only pointers refer to
        self._copies: list[Tensor] = []  # fp32 copies of norms and biases
        self._originals: list[Tensor] = []
        self._centered: list[Tensor] = []  # those copies to which 1 is added
        self._names = adapter_names(model)
        self._numbers = (c_int64 * cache.slots)()  # of each row's adapter, from 0; -1: none
        self._only = (c_int64 * cache.slots)()  # the same of layers with one adapter for all rows
        self._scales: list[tuple[c_double, LoRALinear]] = []
        self._quantized = [store for store in cache.layers if isinstance(store, QuantizedCache)]
        self._vocabulary, self._softcap = model.config.vocabulary, model.config.softcap
        positions = torch.arange(cache.length)[None]
        angles = [tuple(map(self._fp32, rotation(positions))) for rotation in model.rotations]
        layers = (LayerStruct * len(cache.layers))(
            *(
                self._layer(b, store, angles)
                for b, store in zip(model.every_block, cache.layers, strict=True)
            )
        )
        self.struct = ModelStruct(
            model.config.width, len(layers), model.config.norm.eps, model.config.embedding_scale,
            model.every_block[0].residual.scale, model.head_scale, model.embed.weight.data_ptr(),
            self._norm(model.norm), self._linear(model.head), layers,
        )  # fmt: skip

    def __call__(
        self, tokens: list[int], positions: list[int], adapters: Sequence[str | None] = ()
    ) -> Tensor:
        """Put token i into slot i at its position; logits (N, V) fp32 of the next tokens.

        adapters: of each row, by name, where the model has several.
        """
        self.refresh()
        for row in range(len(tokens)):
            name = adapters[row] if adapters else None
            self._numbers[row] = -1 if name is None else self._names.index(name)
        for store in self._quantized:
            store.open_groups([position // GROUP for position in positions])
        rows, integers = len(tokens), c_int64 * len(tokens)
        logits = torch.empty(rows, self._vocabulary)
        library().culm_decode(
            self.struct, rows, integers(*tokens), integers(*positions),
            c_void_p(logits.data_ptr()), torch.get_num_threads(),
        )  # fmt: skip
        if full := [row for row, at in enumerate(positions) if at % GROUP == GROUP - 1]:
            for store in self._quantized:
                store.close_groups(torch.tensor(full))
        return capped(logits, self._softcap)

    def _layer(self, block: Block, store: LayerCache, angles: list[tuple[int, ...]]) -> LayerStruct:
        attention, mlp = block.attention, block.mlp
        assert isinstance(attention, GroupedQueryAttention)
        assert isinstance(mlp, GatedFeedForward)
        rule, rope, dim = attention.rule(), attention.config.rope, attention.head_dim
        linears = (
            attention.q, attention.k, attention.v, attention.out, mlp.gate, mlp.up, mlp.down,
        )  # fmt: skip
        norms = (
            block.attention_norm, block.mlp_norm, block.attention_out_norm, block.mlp_out_norm,
            attention.q_norm, attention.k_norm,
        )  # fmt: skip
        heads = base_of(attention.q).out_features // dim
        normed = heads * dim if attention.config.qk_norm == "width" else dim
        return LayerStruct(
            heads, attention.kv_heads, dim, rope.rotary_dim(dim) if rope else 0,
            ACTIVATIONS.index(mlp.activation), normed,
            rule.scale or dim**-0.5, rule.softcap or 0.0, *map(self._norm, norms),
            *((None, None) if attention.rotation is None else angles[attention.rotation]),
            cache_struct(store, rule), *map(self._linear, linears),
        )  # fmt: skip

    def refresh(self) -> None:
        """Copy norms, biases and scales again: they may have changed."""
        for scale, layer in self._scales:
            scale.value = layer.scale if layer.enabled else 0.0
        if self._copies:
            torch._foreach_copy_(self._copies, self._originals)
        if self._centered:
            torch._foreach_add_(self._centered, 1)

    def _norm(self, norm: nn.Module) -> int | None:
        if not isinstance(norm, RMSNorm):
            return None
        if norm.centered:
            self._centered.append(self._copied(norm.weight))
            return self._centered[-1].data_ptr()
        return self._fp32(norm.weight)

    def _linear(self, layer: nn.Module) -> LinearStruct:
        base, group, scale, zero = base_of(layer), 0, None, None
        if isinstance(base, Int8Linear):
            scale = base.scale.data_ptr()
        elif isinstance(base, Int4Linear):
            group, scale, zero = base.group, base.scale.data_ptr(), base.zero.data_ptr()
        bias = None if base.bias is None else self._fp32(base.bias)
        return LinearStruct(
            KINDS[type(base)], base.out_features, base.in_features, group,
            base.weight.data_ptr(), scale, zero, bias, self._adapters(layer),
        )  # fmt: skip

    def _adapters(self, layer: nn.Module) -> AdaptersStruct:
        if not isinstance(layer, LoRALinear | MultiLoRALinear):
            return AdaptersStruct()
        scale, numbers, factor = c_double(1), self._numbers, None
        if isinstance(layer, LoRALinear):
            numbers = self._only
            self._scales.append((scale, layer))
        elif layer.factor is not None:
            factor = self._fp32(layer.factor)
        self._held.append(scale)
        a, b, kind = layer.a.detach(), layer.b.detach(), KINDS[Linear]
        if {a.dtype, b.dtype} == {torch.bfloat16} and a.is_contiguous() and b.is_contiguous():
            self._held += a, b
            addresses = a.data_ptr(), b.data_ptr()
        else:
            addresses, kind = (self._fp32(a), self._fp32(b)), FP32
        return AdaptersStruct(
            a.shape[-2], kind, addressof(numbers), addressof(scale), *addresses, factor
        )

    def _fp32(self, tensor: Tensor) -> int:
        if tensor.dtype == torch.float32 and tensor.is_contiguous():
            self._held.append(tensor.detach())
            return tensor.data_ptr()
        return self._copied(tensor).data_ptr()

    def _copied(self, tensor: Tensor) -> Tensor:
        copy = torch.empty(tensor.shape)
        self._copies.append(copy)
        self._originals.append(tensor.detach())
        return copy


def fused_decoder(model: Transformer, cache: Cache) -> FusedDecoder | None:
    """The fused step for a model; without one, says why, where a user may expect it."""
    found = obstacle(model, cache)
    if found is None:
        return FusedDecoder(model, cache)
    if computes_in_bf16(model):
        _tell(found)
    return None


@functools.cache
def _tell(found: str) -> None:
    """Once for each reason."""
    say(f"Decoding in PyTorch instead of the fused step: {found}.")
