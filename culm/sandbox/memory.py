"""Memory of a process and of all that it started, from Linux's /proc."""

from __future__ import annotations

import os


def resident_bytes(pid: int) -> int:
    """What the processes hold in memory; a page that several share counts for each.

    Linux alone has /proc; elsewhere this is 0.
    """
    total, waiting = 0, [pid]
    while waiting:
        one = waiting.pop()
        try:
            with open(f"/proc/{one}/statm", "rb") as file:
                total += int(file.read().split()[1])
            with open(f"/proc/{one}/task/{one}/children", "rb") as file:
                waiting += map(int, file.read().split())
        except (OSError, IndexError):  # it ended
            continue
    return total * os.sysconf("SC_PAGE_SIZE")
