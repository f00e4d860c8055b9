"""The decoding step of a whole model as one C++ function (`fused.cpp`), where it can be had.

It needs a CPU with AVX-512 (bf16, VNNI), a C++ compiler at the first use (two seconds; the library
is cached in ~/.cache/culm), and a model in bf16 or with int8 or int4 weights. Everything else is
decoded by the model itself, with equal results up to rounding.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from ctypes import POINTER, Structure, c_double, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from culm.adapt.quantize.int4 import Int4Linear
from culm.adapt.quantize.int8 import Int8Linear
from culm.log import say
from culm.model.attention.gqa import GroupedQueryAttention
from culm.model.cache import Cache
from culm.model.linear import Linear
from culm.model.mlp.swiglu import SwiGLUFeedForward
from culm.model.norm import RMSNorm
from culm.model.transformer import Transformer

ROWS = 16  # of a step; from there on products of matrices are faster than those with few rows
NEEDED = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16", "avx512_vnni")
SOURCE = Path(__file__).with_name("fused.cpp")


class _Linear(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("kind", "outputs", "inputs", "group")),
        *((name, c_void_p) for name in ("weight", "scale", "zero", "bias")),
    ]


class _Layer(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("heads", "kv_heads", "dim", "window")),
        *((name, c_void_p) for name in ("attention_norm", "mlp_norm", "q_norm", "k_norm")),
        *((name, c_void_p) for name in ("cosines", "sines", "keys", "values")),
        *((name, _Linear) for name in ("q", "k", "v", "out", "gate", "up", "down")),
    ]


class _Model(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("width", "layers", "places")),
        ("eps", c_double),
        ("embedding", c_void_p),
        ("norm", c_void_p),
        ("head", _Linear),
        ("layer", POINTER(_Layer)),
    ]


class FusedDecoder:
    """Decodes with a model's own weights and cache; neither may be replaced meanwhile."""

    def __init__(self, model: Transformer, cache: Cache) -> None:
        self._held: list[Tensor] = []  # what only pointers refer to
        self._vocabulary = model.config.vocabulary
        places = torch.arange(cache.places)[None]
        angles = [tuple(map(self._fp32, rotation(places))) for rotation in model.rotations]
        layers = (_Layer * len(model.blocks))()
        for layer, block, store in zip(layers, model.blocks, cache.layers, strict=True):
            attention, mlp = block.attention, block.mlp
            layer.heads = attention.q.out_features // attention.head_dim
            layer.kv_heads, layer.dim = attention.kv_heads, attention.head_dim
            layer.window = attention.window or 0
            layer.cosines, layer.sines = angles[attention.rotation]
            layer.keys, layer.values = store.keys.data_ptr(), store.values.data_ptr()
            for name, norm in (
                ("attention_norm", block.attention_norm),
                ("mlp_norm", block.mlp_norm),
                ("q_norm", attention.q_norm),
                ("k_norm", attention.k_norm),
            ):
                if isinstance(norm, RMSNorm):
                    setattr(layer, name, self._fp32(norm.weight))
            for name in ("q", "k", "v", "out"):
                setattr(layer, name, self._linear(attention.get_submodule(name)))
            for name in ("gate", "up", "down"):
                setattr(layer, name, self._linear(mlp.get_submodule(name)))
        self._model = _Model(
            model.config.width, len(layers), cache.places, model.config.eps,
            model.embed.weight.data_ptr(), self._fp32(model.norm.weight), self._linear(model.head),
            layers,
        )  # fmt: skip

    def __call__(self, tokens: list[int], positions: list[int]) -> Tensor:
        """Put token i into slot i at its position; logits (N, V) fp32 of the next tokens."""
        rows, integers = len(tokens), c_int64 * len(tokens)
        logits = torch.empty(rows, self._vocabulary)
        library().culm_decode(
            ctypes.byref(self._model), rows, integers(*tokens), integers(*positions),
            c_void_p(logits.data_ptr()), torch.get_num_threads(),
        )  # fmt: skip
        return logits

    def _fp32(self, tensor: Tensor) -> int:
        self._held.append(tensor.detach().float().contiguous())
        return self._held[-1].data_ptr()

    def _linear(self, layer: nn.Module) -> _Linear:
        kind, outputs, inputs = _kind(layer), layer.out_features, layer.in_features
        weight = layer.weight.data_ptr()
        bias = None if layer.bias is None else self._fp32(layer.bias)
        if isinstance(layer, Int8Linear):
            return _Linear(kind, outputs, inputs, 0, weight, layer.scale.data_ptr(), None, bias)
        if isinstance(layer, Int4Linear):
            scale, zero = layer.scale.data_ptr(), layer.zero.data_ptr()
            return _Linear(kind, outputs, inputs, layer.group, weight, scale, zero, bias)
        return _Linear(kind, outputs, inputs, 0, weight, None, None, bias)


def fuses(model: Transformer) -> bool:
    """Whether the fused step serves this model on this machine."""
    on_cpu = model.device.type == "cpu" and model.dtype == torch.bfloat16
    return on_cpu and model.embed.weight.dtype == torch.bfloat16 and _fits(model) and has_library()


def _fits(model: Transformer) -> bool:
    """Parts that it knows, in shapes that fill its registers; what shares an input is of one kind."""
    for block in model.blocks:
        attention, mlp = block.attention, block.mlp
        if type(attention) is not GroupedQueryAttention or type(mlp) is not SwiGLUFeedForward:
            return False
        if attention.head_dim % 16:
            return False
        for group in (
            (attention.q, attention.k, attention.v),
            (attention.out,),
            (mlp.gate, mlp.up),
            (mlp.down,),
        ):
            if len({(_kind(layer), layer.in_features) for layer in group}) > 1:
                return False
            if any(_kind(layer) is None or layer.in_features % 32 for layer in group):
                return False
    return _kind(model.head) is not None and model.config.width % 32 == 0


def _kind(layer: nn.Module) -> int | None:
    if type(layer) is Linear and layer.weight.dtype == torch.bfloat16:
        return 0
    return {Int8Linear: 1, Int4Linear: 2}.get(type(layer))  # type: ignore[call-overload]


@cache
def library() -> ctypes.CDLL:
    """The compiled step; OSError or CalledProcessError where it cannot be had."""
    place = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    source = SOURCE.read_bytes()
    path = Path(place) / "culm" / f"fused-{hashlib.sha256(source).hexdigest()[:16]}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            built = Path(folder) / "fused.so"
            flags = [f"-m{name.replace('_', '')}" for name in NEEDED]
            command = [_compiler(), "-O3", "-std=c++17", "-fopenmp", "-shared", "-fPIC", "-mfma"]
            subprocess.run(
                [*command, *flags, str(SOURCE), "-o", str(built)], check=True, capture_output=True
            )
            os.replace(built, path)  # at once: another process may be doing the same
    found = ctypes.CDLL(str(path))
    pointers = (c_void_p, c_void_p, c_void_p)
    found.culm_decode.argtypes = (c_void_p, c_int64, *pointers, c_int64)
    found.culm_decode.restype = None
    return found


def _compiler() -> str:
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return name
    raise OSError("no C++ compiler")


@cache
def has_library() -> bool:
    """Whether the step runs here; says why not, once."""
    cpu = Path("/proc/cpuinfo")
    words = cpu.read_text().split() if cpu.exists() else []
    try:
        if set(NEEDED) - set(words):
            raise OSError("this CPU has no AVX-512 with bf16 and VNNI")
        library()
    except (OSError, subprocess.CalledProcessError) as error:
        say(f"Decoding by torch operators: {error}")
        return False
    return True
