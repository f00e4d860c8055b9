"""Dtypes by name: torch's names, and the short ones."""

from __future__ import annotations

import torch

from culm.config import SettingError

DTYPES = {
    "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
    "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16,
}  # fmt: skip


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


def name_of(dtype: torch.dtype) -> str:
    """Torch's name, such as `float32`."""
    return str(dtype).removeprefix("torch.")
