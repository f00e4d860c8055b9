"""The compiled decoding step, `fused.cpp`."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_int64, c_void_p
from functools import cache
from pathlib import Path

from culm.compiled import compiled
from culm.engine.fused_structs import ModelStruct, ReadingStruct


@cache
def library() -> ctypes.CDLL:
    """The compiled step.

    Raises:
        OSError: this machine cannot compile or run it; the message says why.
    """
    found = compiled(Path(__file__).with_name("fused.cpp"), "the decoding step")
    pointers, model = (c_void_p, c_void_p, c_void_p), POINTER(ModelStruct)
    found.culm_decode.argtypes = (model, c_int64, *pointers, c_int64)
    found.culm_decode.restype = None
    reading = POINTER(ReadingStruct)
    found.culm_read_heads.argtypes = (model, c_int64, reading, *pointers)
    found.culm_read_heads.restype = None
    found.culm_read_branches.argtypes = (model, c_int64, reading, c_void_p)
    found.culm_read_branches.restype = None
    return found


@cache
def no_library() -> str | None:
    """Why the step does not run on this machine; None: it does."""
    try:
        library()
    except OSError as error:
        return str(error)
    return None
