"""The layers of a model over many tokens: in C++ (`fused.cpp`), except for attention.

It reads prompts and windows of drafts. The residual stream, queries and all sums are fp32. Inputs
of matmuls are bf16 with bf16 weights, so it is more exact than PyTorch's operators. With quantised
weights they are int8 with scales, as in a decoding step: integer matmuls are two to three times as
fast.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from culm.engine.fused import FusedDecoder
from culm.engine.fused_library import library
from culm.engine.fused_structs import ReadingStruct
from culm.model.attend_cached import attend_cached
from culm.model.attention.gqa import GroupedQueryAttention
from culm.model.cache import FullCache, RollingCache
from culm.model.context import Context, LayerContext
from culm.model.mlp.gated import GatedFeedForward
from culm.model.quantized_cache import QuantizedCache
from culm.model.transformer import Transformer

LANES = 16  # tokens of a panel, as in C++


class FusedReader:
    """Computes what `FusedDecoder` computes, without adapters, for many tokens of each row."""

    def __init__(self, model: Transformer, decoder: FusedDecoder) -> None:
        self._model, self._decoder = model, decoder
        blocks, self._attentions = model.every_block, list[GroupedQueryAttention]()
        self._inner = self._heads = 0
        for block in blocks:
            attention, mlp = block.attention, block.mlp
            assert isinstance(attention, GroupedQueryAttention)
            assert isinstance(mlp, GatedFeedForward)
            self._attentions.append(attention)
            self._inner = max(self._inner, mlp.down.in_features)
            self._heads = max(
                self._heads, attention.out.in_features + 2 * attention.kv_heads * attention.head_dim
            )

    def states(
        self, tokens: Tensor, context: Context, only: Tensor | None = None
    ) -> tuple[Tensor, LayerContext]:
        """What `Transformer.states` gives for tokens (B, T) of one document per row.

        only: (B,), the place of a token in each row. The states of these alone are given, (B, E).
        """
        self._decoder.refresh()
        model, last = self._model, len(self._attentions) - 1
        x = _panels(model.embed(tokens.flatten()).float() * model.config.embedding_scale)
        inner = LayerContext.of(context, tuple(turn(context.positions) for turn in model.rotations))
        angles = [tuple(_panels(part.flatten(0, 2)) for part in pair) for pair in inner.rotations]
        scratch, count, positions = self._scratch(x), tokens.numel(), context.positions
        for layer, attention in enumerate(self._attentions):
            turned = () if attention.rotation is None else angles[attention.rotation]
            reading = _reading(x, count, scratch, *turned)
            q, k, v = self._projected(layer, reading, tokens.shape)
            cache = context.view.layers[layer]
            assert isinstance(cache, FullCache | RollingCache | QuantizedCache)
            (k, v), at = cache.update(inner, k, v)
            if layer == last and only is not None:  # what no later layer reads is not computed
                rows, count = torch.arange(len(only)), len(only)
                places = rows * tokens.shape[1] + only
                x = _panels(x.transpose(1, 2)[places // LANES, places % LANES])
                q, positions = q[rows, only, None], positions[rows, only, None]
                reading = _reading(x, count, scratch)
            mixed = attend_cached(q, k, v, at, positions, attention.rule(), attention.backend)
            mixed = mixed.contiguous()
            library().culm_read_branches(self._decoder.struct, layer, reading, mixed.data_ptr())
        states = x.transpose(1, 2).flatten(0, 1)[:count].to(model.dtype)
        return states if only is not None else states.unflatten(0, tokens.shape), inner

    def _projected(
        self, layer: int, reading: ReadingStruct, shape: torch.Size
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries (B, T, H, D) and keys (B, T, K, D), and values; shape: (B, T)."""
        attention = self._attentions[layer]
        dim, kv_heads = attention.head_dim, attention.kv_heads
        q = torch.empty(*shape, attention.out.in_features // dim, dim)
        k, v = (torch.empty(*shape, kv_heads, dim, dtype=torch.float16) for _ in range(2))
        places = (part.data_ptr() for part in (q, k, v))
        library().culm_read_heads(self._decoder.struct, layer, reading, *places)
        return q, k, v

    def _scratch(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs of matmuls, inputs, and those of `down`."""
        panels, width, _ = x.shape
        sizes = max(width, self._heads), max(width, self._heads), self._inner
        dtypes = torch.float32, torch.bfloat16, torch.bfloat16
        return tuple(
            torch.empty(panels * size * LANES, dtype=dtype)
            for size, dtype in zip(sizes, dtypes, strict=True)
        )  # type: ignore[return-value]


def fused_reader(model: Transformer, decoder: FusedDecoder | None) -> FusedReader | None:
    """The reader of a model that has a fused step and no adapters."""
    if decoder is None or decoder.has_adapters:
        return None
    return FusedReader(model, decoder)


def _reading(x: Tensor, tokens: int, scratch: tuple[Tensor, ...], *angles: Tensor) -> ReadingStruct:
    cosines, sines = (part.data_ptr() for part in angles) if angles else (None, None)
    return ReadingStruct(
        tokens, torch.get_num_threads(), x.data_ptr(), cosines, sines,
        *(part.data_ptr() for part in scratch),
    )  # fmt: skip


def _panels(x: Tensor) -> Tensor:
    """Tokens (N, E) in the lanes of panels, (ceil(N / 16), E, 16), filled up with zeros."""
    filled = F.pad(x, (0, 0, 0, -len(x) % LANES))
    return filled.unflatten(0, (-1, LANES)).transpose(1, 2).contiguous()
