"""Dtypes by name (torch's names, and the short ones), and what fits into them."""

from __future__ import annotations

import torch
from torch import Tensor

from culm.config import SettingError

DTYPES = {
    "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
    "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16,
}  # fmt: skip
NOT_FINITE = "contains NaN or infinity; use an earlier checkpoint"


def dtype_of(given: str | torch.dtype) -> torch.dtype:
    """The dtype of a name; a dtype is returned unchanged.

    Raises:
        SettingError: the name is unknown.
    """
    if given in DTYPES.values():
        return given  # type: ignore[return-value]
    if given not in DTYPES:
        raise SettingError(f"dtype: {str(given)!r} is not one of {', '.join(DTYPES)}")
    return DTYPES[given]


def activations_of(precision: str) -> torch.dtype:
    """The dtype of activations in a precision of training; with fp8, which matmuls have, bf16."""
    return torch.bfloat16 if precision == "fp8" else DTYPES[precision]


def name_of(dtype: torch.dtype) -> str:
    """Torch's name, such as `float32`."""
    return str(dtype).removeprefix("torch.")


def is_finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite; a mask of a full embedding is never in memory."""
    parts = tensor.reshape(-1).split(1 << 20)
    return all(bool(part.float().isfinite().all()) for part in parts)


def cast(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """A weight in another dtype, every number of which must be finite there.

    Raises:
        SettingError: one is not, or is too large for the dtype; it starts with `name`.
    """
    stored = tensor.to(dtype)
    if not stored.is_floating_point() or is_finite(stored):
        return stored
    if not is_finite(tensor):
        raise SettingError(f"{name} {NOT_FINITE}")
    largest = f"{tensor.abs().max().item():.4g}"
    raise SettingError(f"{name}: {largest} is more than {name_of(dtype)} can store; use float32")
