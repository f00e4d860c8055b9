"""The peak memory of this process."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

from culm.malloc import release_freed_memory

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak() -> None:
    """Free what is not in use and start a new measurement, where the system can (Linux)."""
    gc.collect()
    release_freed_memory()
    if CLEAR.exists():
        try:
            CLEAR.write_text("5")
        except OSError:  # a container without the right to: the peak is then of the whole process
            return


def resident_bytes() -> int | None:
    """Memory of this process now; None where the system does not say."""
    return _status("VmRSS")


def peak_bytes() -> int:
    """Peak resident size of this process since `reset_peak`, or since it started."""
    if (peak := _status("VmHWM")) is not None:
        return peak
    if sys.platform == "win32":
        return 0  # no cheap figure there; reports show a dash
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _status(name: str) -> int | None:
    """Bytes of an entry in the status of this process (Linux)."""
    if not STATUS.exists():
        return None
    lines = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return next((int(line.split()[1]) * 1024 for line in lines), None)
