"""The structures of `fused.cpp`, which says what they mean."""

from __future__ import annotations

from ctypes import POINTER, Structure, c_double, c_int64, c_void_p

from culm.model.cache import RollingCache
from culm.model.layer_cache import LayerCache
from culm.model.quantized_cache import GROUP, QuantizedCache, Rounded
from culm.model.score_rule import ScoreRule


class AdaptersStruct(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("rank", "kind")),
        *((name, c_void_p) for name in ("number", "scale", "a", "b", "factor")),
    ]


class LinearStruct(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("kind", "outputs", "inputs", "group")),
        *((name, c_void_p) for name in ("weight", "scale", "zero", "bias")),
        ("adapters", AdaptersStruct),
    ]


class CodesStruct(Structure):
    _fields_ = [(name, c_void_p) for name in ("codes", "scale", "zero")]


class CacheStruct(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("entries", "window", "sinks")),
        *((name, c_void_p) for name in ("keys", "values", "at")),
        *((name, c_int64) for name in ("bits", "groups")),
        *((name, CodesStruct) for name in ("key_codes", "value_codes")),
    ]


class LayerStruct(Structure):
    _fields_ = [
        *((n, c_int64) for n in ("heads", "kv_heads", "dim", "rotated", "activation", "normed")),
        *((name, c_double) for name in ("scale", "softcap")),
        *((f"{name}_norm", c_void_p) for name in ("attention", "mlp", "attention_out", "mlp_out")),
        *((name, c_void_p) for name in ("q_norm", "k_norm", "cosines", "sines")),
        ("cache", CacheStruct),
        *((name, LinearStruct) for name in ("q", "k", "v", "out", "gate", "up", "down")),
    ]


class ModelStruct(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("width", "layers")),
        *((name, c_double) for name in ("eps", "embedding_scale", "branch_scale", "head_scale")),
        ("embedding", c_void_p),
        ("norm", c_void_p),
        ("head", LinearStruct),
        ("layer", POINTER(LayerStruct)),
    ]


class ReadingStruct(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("tokens", "threads")),
        *((name, c_void_p) for name in ("x", "cosines", "sines", "sums", "input", "inner")),
    ]


def cache_struct(store: LayerCache, rule: ScoreRule) -> CacheStruct:
    sees = (rule.window or 0, rule.sink_tokens)
    if isinstance(store, QuantizedCache):
        keys, values = store.newest
        groups = store.parts[0].codes.shape[2]
        return CacheStruct(
            groups * GROUP, *sees, keys.data_ptr(), values.data_ptr(), None,
            store.bits, groups, *map(_codes, store.parts),
        )  # fmt: skip
    keys, values = store.tensors
    at = store.at.data_ptr() if isinstance(store, RollingCache) else None
    return CacheStruct(keys.shape[2], *sees, keys.data_ptr(), values.data_ptr(), at)


def _codes(part: Rounded) -> CodesStruct:
    return CodesStruct(*(tensor.data_ptr() for tensor in part))
