"""What a confined program sees of the host: the Python installation, read-only."""

from __future__ import annotations

import os
import sys

LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/nix/store")
FILES = ("/etc/ld.so.cache", "/usr/share/zoneinfo")


def python() -> str:
    """The interpreter itself, not the link of a virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def packages() -> list[str]:
    """The folders of installed packages on this process's path."""
    ends = ("site-packages", "dist-packages")
    found = [os.path.realpath(place) for place in sys.path if place.rstrip("/").endswith(ends)]
    return list(dict.fromkeys(place for place in found if os.path.isdir(place)))


def folders() -> list[tuple[str, str]]:
    """Pairs: where a folder or file lies, and its name in the view."""
    prefix = [os.path.join(sys.base_prefix, name) for name in ("lib", "lib64")]
    wanted = [*LIBRARIES, *FILES, *prefix, *packages(), python()]
    named = {name: os.path.realpath(name) for name in wanted if os.path.exists(name)}
    inside = [
        name for name in named
        if any(name.startswith(f"{other}/") and named[name] == name for other in named)
    ]  # fmt: skip
    return [(real, name) for name, real in named.items() if name not in inside]
