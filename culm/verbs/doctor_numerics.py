"""Numerics of this machine: small results in each precision, compared with those in fp64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from math import inf

import torch
from torch import Tensor, nn

from culm.adapt.quantize.int4 import Int4
from culm.adapt.quantize.int8 import Int8
from culm.adapt.quantize.linear import QuantizedLinear
from culm.dtype import DTYPES
from culm.engine.fused import FusedDecoder
from culm.engine.fused_library import no_library
from culm.model.attend import attend
from culm.model.attention.gqa import GQA
from culm.model.backend import choose_backend
from culm.model.context import Context
from culm.model.score_rule import ScoreRule
from culm.model.transformer import TransformerConfig
from culm.optim.adamw import AdamWRule

# Maximum errors, several times those of correct rounding; TF32 gives 3e-4.
LIMITS = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 2e-2}
# Weights are the same on both sides; int8 and int4 round activations to int8 too.
FUSED_LIMITS = {"bf16": 2e-2, "int8": 4e-2, "int4": 4e-2}
COARSE_FP32 = (
    "unset NVIDIA_TF32_OVERRIDE, TORCH_ALLOW_TF32_CUBLAS_OVERRIDE and ONEDNN_DEFAULT_FPMATH_MODE, "
    "with which matmuls in fp32 are less exact; if it stays, update PyTorch and the driver"
)
OTHER_PRECISION = "use train.precision=fp32 and --dtype float32, and update PyTorch and the driver"
Operation = Callable[..., Tensor]


@dataclass(frozen=True)
class Check:
    """error: ||found - exact|| / ||exact||. remedy: what to do where it is above the limit.

    failure: the sentence of an operation that did not run, whose error is infinite.
    """

    name: str
    precision: str
    error: float
    limit: float
    remedy: str
    failure: str = ""

    @property
    def passed(self) -> bool:
        return self.error <= self.limit  # NaN does not


def numerics(device: torch.device) -> Iterator[Check]:
    """All checks of a device, in each precision that it offers."""
    for precision in precisions(device):
        yield from _operations(device, precision)
    yield _checked("AdamW", "fp32", LIMITS["fp32"], "update PyTorch", partial(_adamw, device))
    if device.type == "cpu" and no_library() is None:
        remedy = "delete ~/.cache/culm, so that it is compiled again; or use --dtype float32"
        for weights, limit in FUSED_LIMITS.items():
            yield _checked("decoding", weights, limit, remedy, partial(_fused, weights))


def precisions(device: torch.device) -> list[str]:
    """Those in which Culm trains or computes on a device; fp16 is for GPUs."""
    return ["fp32", "bf16"] if device.type == "cpu" else ["fp32", "bf16", "fp16"]


def _operations(device: torch.device, precision: str) -> Iterator[Check]:
    chance, dtype = torch.Generator().manual_seed(0), DTYPES[precision]
    x, y = (torch.randn(*shape, generator=chance) for shape in ((128, 512), (512, 128)))
    rows = [torch.randn(1, 64, heads, 32, generator=chance) for heads in (4, 2, 2)]
    backend = choose_backend(device, dtype=dtype)
    context = Context(torch.arange(64, device=device)[None])

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, context, ScoreRule(), backend)

    remedy = COARSE_FP32 if precision == "fp32" else OTHER_PRECISION
    simple = remedy if backend == "blocks" else "use train.attention_backend=blocks"
    cases: list[tuple[str, str, Operation, Operation, list[Tensor]]] = [
        ("matmul", remedy, torch.matmul, torch.matmul, [x, y]),
        ("softmax", remedy, _softmax, _softmax, [x * 4]),
        (f"attention by {backend}", simple, attention, _attention, rows),
    ]
    for name, advice, operation, exact, numbers in cases:
        given = [tensor.to(dtype) for tensor in numbers]
        error = partial(_error_of, operation, exact, given, device)
        yield _checked(name, precision, LIMITS[precision], advice, error)


def _error_of(
    operation: Operation, exact: Operation, given: list[Tensor], device: torch.device
) -> float:
    found = operation(*(tensor.to(device) for tensor in given))
    return _error(found, exact(*(tensor.double() for tensor in given)))


def _checked(
    name: str, precision: str, limit: float, remedy: str, error: Callable[[], float]
) -> Check:
    try:
        return Check(name, precision, error(), limit, remedy)
    except Exception as failure:  # a kernel, a driver or a compiler may fail in any way
        words = (str(failure).strip().splitlines() or [type(failure).__name__])[0]
        return Check(name, precision, inf, limit, remedy, words)


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found.detach().double().cpu() - exact).norm() / exact.norm())


def _softmax(x: Tensor) -> Tensor:
    return x.softmax(-1)


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q: (B, T, H, D); k, v: (B, T, K, D) -> (B, T, H, D), causal, from the formula."""
    k, v = (x.repeat_interleave(q.shape[2] // k.shape[2], 2) for x in (k, v))
    scores = torch.einsum("bthd,bshd->bhts", q, k) * q.shape[3] ** -0.5
    ahead = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return torch.einsum("bhts,bshd->bthd", scores.masked_fill(ahead, -inf).softmax(-1), v)


def _adamw(device: torch.device) -> float:
    """Of the first step, in which the change of a weight follows from one gradient."""
    chance = torch.Generator().manual_seed(0)
    gradient = torch.randn(64, 64, generator=chance)
    parameter = nn.Parameter(torch.zeros(64, 64, device=device), requires_grad=False)
    rule, group = AdamWRule((0.9, 0.95)), {"lr": 0.1, "weight_decay": 0.0, "eps": 1e-8}
    rule.update(parameter, gradient.to(device), rule.init(parameter), group)
    exact = gradient.double()
    return _error(parameter, -0.1 * exact / (exact.abs() + 1e-8))


@torch.inference_mode()
def _fused(weights: str) -> float:
    """Of the logits of four tokens, compared with fp32 of the same weights, dequantised."""
    config = TransformerConfig(vocabulary=64, width=64, layers=1, attention=(GQA(heads=4),))
    model = config.build(seed=0).eval().bfloat16()
    model.dtype = torch.bfloat16
    exact = deepcopy(model).float()
    exact.dtype = torch.float32
    if weights != "bf16":
        {"int8": Int8(), "int4": Int4()}[weights].apply(model)
    for name, layer in model.named_modules():
        if isinstance(layer, QuantizedLinear):
            exact.get_parameter(f"{name}.weight").copy_(layer.dequantize())
    tokens = [5, 17, 3, 40]
    decoder = FusedDecoder(model, model.cache(1, len(tokens)))
    found = torch.stack([decoder([token], [at])[0] for at, token in enumerate(tokens)])
    return _error(found, exact(torch.tensor([tokens]))[0].double())
