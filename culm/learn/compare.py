"""What differs between two results, in plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

LONGEST = 60  # characters of a value in a message


def difference(seen: Any, expected: Any, tolerance: float) -> str | None:
    """None if both are equal: numbers within the tolerance, anything else exactly."""
    if isinstance(expected, Tensor | np.ndarray):
        return _of_tensors(seen, torch.as_tensor(expected), tolerance)
    if isinstance(expected, bool) or not isinstance(expected, int | float):
        return _of_others(seen, expected, tolerance)
    seen = seen.item() if isinstance(seen, Tensor | np.generic) and seen.ndim == 0 else seen
    if isinstance(seen, bool) or not isinstance(seen, int | float):
        return f"it gives {outline(seen)}, and a number is expected"
    if _close(seen, expected, tolerance):
        return None
    return f"it gives {seen:.6g}, and {expected:.6g} is expected"


def _of_tensors(seen: Any, expected: Tensor, tolerance: float) -> str | None:
    if isinstance(seen, np.ndarray) and seen.dtype.kind in "biuf":
        seen = torch.as_tensor(seen)
    if not isinstance(seen, Tensor):
        return f"it gives {outline(seen)}, and a tensor is expected"
    if seen.shape != expected.shape:
        return f"its shape is {tuple(seen.shape)}, and {tuple(expected.shape)} is expected"
    if _kind(seen) != _kind(expected):
        return f"it gives {_kind(seen)}, and {_kind(expected)} are expected"
    if not expected.is_floating_point():
        wrong = seen != expected
    else:
        one, other = seen.detach().double(), expected.detach().double()
        wrong = ~torch.isclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)
    if not wrong.any():
        return None
    if not seen.ndim:
        return f"it gives {seen.item():.6g}, and {expected.item():.6g} is expected"
    place = tuple(wrong.nonzero()[0].tolist())
    count = int(wrong.sum())
    return (
        f"{count} of {wrong.numel()} values differ, the first at {list(place)}: "
        f"{seen[place].item():.6g}, and {expected[place].item():.6g} is expected"
    )


def _kind(tensor: Tensor) -> str:
    if tensor.dtype == torch.bool:
        return "True and False"
    return "fractions" if tensor.is_floating_point() else "integers"


def _of_others(seen: Any, expected: Any, tolerance: float) -> str | None:
    if isinstance(expected, Mapping):
        if not isinstance(seen, Mapping):
            return f"it gives {outline(seen)}, and {outline(expected)} is expected"
        if set(seen) != set(expected):
            keys = [", ".join(map(repr, one)) or "no keys" for one in (seen, expected)]
            return f"it has {keys[0]}, and {keys[1]} are expected"
        pairs = [(f"under {key!r} ", seen[key], expected[key]) for key in expected]
    elif isinstance(expected, Sequence) and not isinstance(expected, str | bytes):
        if not isinstance(seen, Sequence) or isinstance(seen, str | bytes):
            return f"it gives {outline(seen)}, and a {type(expected).__name__} is expected"
        if len(seen) != len(expected):
            return (
                f"it gives {len(seen)} values ({outline(seen)}), and {len(expected)} "
                f"({outline(expected)}) are expected"
            )
        pairs = [
            (f"in place {i} ", *pair) for i, pair in enumerate(zip(seen, expected, strict=True))
        ]
    else:
        equal = type(seen) is type(expected) and seen == expected
        return None if equal else f"it gives {outline(seen)}, and {outline(expected)} is expected"
    for where, one, other in pairs:
        found = difference(one, other, tolerance)
        if found is not None:
            return where + found
    return None


def _close(seen: float, expected: float, tolerance: float) -> bool:
    if isinstance(seen, int) and isinstance(expected, int):
        return seen == expected
    return math.isclose(seen, expected, rel_tol=tolerance, abs_tol=tolerance) or (
        math.isnan(seen) and math.isnan(expected)
    )


def outline(value: Any) -> str:
    """A value in few words: the shape of a tensor, and what anything else prints, truncated."""
    if isinstance(value, Tensor | np.ndarray) and value.ndim:
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Tensor):
        return f"{value.item():.6g}"
    if isinstance(value, list | tuple) and any(isinstance(one, Tensor) for one in value):
        return "[" + ", ".join(map(outline, value)) + "]"
    if callable(value) and hasattr(value, "__name__"):
        return str(value.__name__)
    said = repr(value)
    return said if len(said) <= LONGEST else said[: LONGEST - 3] + "..."
