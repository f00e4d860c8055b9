"""The compiled decoding step, `fused.cpp`."""

from __future__ import annotations

import ctypes
from ctypes import c_int64, c_void_p
from functools import cache
from pathlib import Path

from culm.compiled import compiled


@cache
def library() -> ctypes.CDLL:
    """The compiled step.

    Raises:
        OSError: this machine cannot compile or run it; the message says why.
    """
    found = compiled(Path(__file__).with_name("fused.cpp"), "the decoding step")
    pointers = (c_void_p, c_void_p, c_void_p)
    found.culm_decode.argtypes = (c_void_p, c_int64, *pointers, c_int64)
    found.culm_decode.restype = None
    return found


@cache
def no_library() -> str | None:
    """Why the step does not run on this machine; None: it does."""
    try:
        library()
    except OSError as error:
        return str(error)
    return None
