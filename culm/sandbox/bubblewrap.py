"""The command line of bubblewrap that gives the view of `culm.sandbox.namespaces`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from culm.sandbox.namespaces import DEVICES, SCRATCH

CODE = "/sandbox"  # this package, in the view
ENTER = f"import sys; sys.path.insert(0, {CODE!r}); from culm.sandbox.program import main; main()"


def command(
    bubblewrap: str,
    python: Sequence[str],
    folders: Sequence[tuple[str, str]],
    scratch_bytes: int,
    environment: Mapping[str, str],
    descriptors: Sequence[int],
) -> list[str]:
    """descriptors: open files that `culm.sandbox.program.main` is given."""
    parts = [bubblewrap, "--die-with-parent", "--new-session", "--as-pid-1", "--clearenv"]
    if os.geteuid() == 0:  # the program becomes nobody, for which it needs these two
        parts += "--cap-drop ALL --cap-add CAP_SETUID --cap-add CAP_SETGID".split()
        parts += "--unshare-pid --unshare-net --unshare-ipc --unshare-uts".split()
        parts += ["--unshare-cgroup-try"]
    else:
        parts += ["--unshare-all"]
    parts += ["--perms", "1777", "--size", str(scratch_bytes), "--tmpfs", SCRATCH]
    for parent in _parents([*DEVICES, *(name for _, name in folders)]):
        parts += ["--perms", "0755", "--dir", parent]
    for source, name in folders:
        parts += ["--ro-bind-try", source, name]
    parts += ["--ro-bind", os.path.dirname(os.path.abspath(__file__)), f"{CODE}/culm/sandbox"]
    for device in DEVICES:
        parts += ["--dev-bind-try", device, device]
    parts += ["--remount-ro", "/", "--chdir", SCRATCH]
    for name, value in environment.items():
        parts += ["--setenv", name, value]
    return [*parts, "--", *python, "-c", ENTER, *map(str, descriptors)]


def _parents(names: Sequence[str]) -> list[str]:
    """Folders above the names, outermost first. Bubblewrap would close them to others."""
    found = {str(parent) for name in names for parent in PurePath(name).parents}
    return sorted(found - {"/", SCRATCH}, key=len)
