"""Keep freed memory for the next step.

glibc gives large buffers back to the system when they are freed and takes them again, page fault
by page fault, in the next step: 15 to 20 % of a training step on a CPU (docs/log.md).
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> bool:
    """Ask glibc to keep freed memory; gives whether it will. Does nothing outside Linux."""
    library = _glibc()
    greatest = 2**31 - 1
    return library is not None and bool(
        library.mallopt(M_MMAP_THRESHOLD, greatest) and library.mallopt(M_TRIM_THRESHOLD, greatest)
    )


def release_freed_memory() -> None:
    """Return unused memory to the system, as between two stages of a run."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


class _Info(ctypes.Structure):
    """What `mallinfo2` gives: arena, bytes of the heap; keepcost, of its free end."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
            "fordblks", "keepcost",
        )
    ]  # fmt: skip


def heap_end() -> tuple[int, int] | None:
    """Bytes of the heap up to the end of what is in use, and with the free bytes at its end.

    None where that is not known: outside glibc 2.33 and later.
    """
    library = _glibc()
    if library is None or not hasattr(library, "mallinfo2"):
        return None
    library.mallinfo2.restype = _Info
    info = library.mallinfo2()
    return info.arena - info.keepcost, info.arena


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        return ctypes.CDLL("libc.so.6")
    except OSError:  # another C library
        return None
