"""FlashAttention (arXiv 2205.14135, 2307.08691) in bf16 on a CPU: `flash_cpu.cpp`, compiled at the
first use.

No matrix of scores is in memory, and keys that no query of a block sees are skipped: later ones,
those before a window, and those of other documents.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, c_float, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from culm.compiled import compiled
from culm.model.context import Context
from culm.model.score_rule import ScoreRule


def flash_cpu(q: Tensor, k: Tensor, v: Tensor, context: Context, rule: ScoreRule) -> Tensor:
    """q: (B, T, H, D); k: (B, T, K, D), v: (B, T, K, Dv), in bf16 -> (B, T, H, Dv).

    Raises:
        OSError: this machine cannot compile or run it; the message says why.
    """
    scale = q.shape[3] ** -0.5 if rule.scale is None else rule.scale
    bounds = bounds_of(context, rule).expand(len(q), -1, -1)
    return _forward(q, k, v, bounds, scale, context.causal)[0]


def bounds_of(context: Context, rule: ScoreRule) -> Tensor:
    """(B, T, 2) int32: the first and the last index of a row that each query sees."""
    rows, length = context.positions.shape
    device = context.positions.device
    places = torch.arange(length, dtype=torch.int32, device=device).expand(rows, length)
    first, last = torch.zeros_like(places), torch.full_like(places, length - 1)
    if context.documents is not None:
        new = context.documents[:, 1:] != context.documents[:, :-1]
        edge = new.new_ones(rows, 1)
        first = places.where(torch.cat((edge, new), 1), 0).cummax(1).values
        ends = places.where(torch.cat((new, edge), 1), length)
        last = ends.flip(1).cummin(1).values.flip(1)
    if rule.window is not None:
        others = min(rule.window, length) - 1
        first, last = first.maximum(places - others), last.minimum(places + others)
    return torch.stack((first, last.minimum(places) if context.causal else last), -1)


@cache
def library() -> ctypes.CDLL:
    """The compiled functions.

    Raises:
        OSError: this machine cannot compile or run them; the message says why.
    """
    found = compiled(Path(__file__).with_suffix(".cpp"), "attention")
    for function in (found.culm_flash_forward, found.culm_flash_backward):
        function.argtypes, function.restype = (POINTER(_Rows), c_int64), None
    return found


class _Rows(ctypes.Structure):
    """`Rows` in `flash_cpu.cpp`."""

    _fields_ = (
        *((name, c_void_p) for name in ("q", "k", "v", "bounds", "out", "rest", "logsum")),
        *((name, c_void_p) for name in ("grad_out", "grad_q", "grad_k", "grad_v")),
        *((name, c_int64) for name in ("batch", "length", "heads", "kv_heads", "width", "values")),
        ("scale", c_float),
    )


def _rows(scale: float, *tensors: Tensor) -> _Rows:
    """tensors: contiguous, in the order of the fields."""
    (B, T, H, D), (K, Dv) = tensors[0].shape, tensors[2].shape[2:]
    pointers = [t.data_ptr() for t in tensors] + [None] * (11 - len(tensors))
    return _Rows(*pointers, B, T, H, K, D, Dv, scale)


@torch.library.custom_op("culm::flash_cpu", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, scale: float, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention (B, T, H, Dv), what rounding took from it, and log of the sum of exp(scores)
    (B, H, T) fp32. causal: for the count of FLOPs.

    Raises:
        TypeError: not bf16.
        ValueError: shapes that do not belong together.
    """
    _check(q, k, v, bounds)
    q, k, v, bounds = (x.contiguous() for x in (q, k, v, bounds))
    made = _outputs(q, v)
    rows = _rows(scale, q, k, v, bounds, *made)
    library().culm_flash_forward(ctypes.byref(rows), torch.get_num_threads())
    return made


def _check(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor) -> None:
    if not q.dtype == k.dtype == v.dtype == torch.bfloat16:
        raise TypeError(f"flash_cpu is for bfloat16, and these are {q.dtype}; use blocks")
    (B, T, H, D), K = q.shape, k.shape[2]
    if k.shape != (B, T, K, D) or v.shape[:3] != k.shape[:3] or H % K:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise ValueError(f"flash_cpu: shapes of q, k and v do not belong together: {shapes}")
    if bounds.shape != (B, T, 2) or bounds.dtype != torch.int32:
        raise ValueError(f"flash_cpu: bounds are {tuple(bounds.shape)} {bounds.dtype}")


def _outputs(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    out, rest = (q.new_empty(*q.shape[:3], v.shape[3]) for _ in range(2))
    return out, rest, q.new_empty(len(q), q.shape[2], q.shape[1], dtype=torch.float32)


@torch.library.custom_op("culm::flash_cpu_back", mutates_args=())
def _backward(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, out: Tensor, rest: Tensor, logsum: Tensor,
    grad: Tensor, scale: float, causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of q, k and v."""
    given = [x.contiguous() for x in (q, k, v, bounds, out, rest, logsum, grad)]
    grad_q, grad_k, grad_v = (torch.empty_like(x) for x in given[:3])
    rows = _rows(scale, *given, grad_q, grad_k, grad_v)
    library().culm_flash_backward(ctypes.byref(rows), torch.get_num_threads())
    return grad_q, grad_k, grad_v


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _outputs(q, v)


@_backward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.scale, ctx.causal = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward(*ctx.saved_tensors, grad, ctx.scale, ctx.causal), None, None, None


_forward.register_autograd(_differentiate, setup_context=_keep)


def _flops(q: tuple[int, ...], k: Any, v: tuple[int, ...], *given: Any, **_: Any) -> int:
    """FLOPs of visible scores and of the sums of values, two per multiply-add; documents and
    windows are not known here.
    """
    rows, length, heads, width = q
    scores = length * (length + 1) // 2 if given[-1] else length * length
    return 2 * rows * heads * scores * (width + v[3])


def _back_flops(*given: Any, **_: Any) -> int:
    """FLOPs of the gradients; those of the scores, which are computed again, are not counted."""
    return 2 * _flops(*given)


FLOPS: dict[Any, Callable[..., int]] = {  # in the form of torch.utils.flop_counter
    torch.ops.culm.flash_cpu: _flops,
    torch.ops.culm.flash_cpu_back: _back_flops,
}
