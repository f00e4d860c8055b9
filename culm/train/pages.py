"""Keep freed memory for the next step.

glibc gives large buffers back to the system when they are freed and takes them again, page fault
by page fault, in the next step: 15 to 20 % of a training step on a CPU (docs/log.md).
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_pages() -> bool:
    """Ask glibc to keep what is freed; whether it does. Elsewhere than on Linux, nothing."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return False
    greatest = 2**31 - 1
    return bool(mallopt(M_MMAP_THRESHOLD, greatest) and mallopt(M_TRIM_THRESHOLD, greatest))
