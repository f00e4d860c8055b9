"""A process with its own view of the machine: Linux namespaces, clone(2), through ctypes.

The process is number 1 of its namespace of processes: when it ends, the kernel kills all others.

    /                   an empty file system in memory, read-only
    |- usr/lib, ...     folders of the Python installation, read-only
    |- dev/null, ...    four devices
    '- tmp              the scratch folder, in memory, of limited size
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
import sys
from collections.abc import Sequence

NEW_USER = 0x10000000
NEW_OTHERS = 0x6E020000  # mount, pid, net, ipc, uts, cgroup
CLONE = {"x86_64": 56, "aarch64": 220}
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
READ_ONLY, NO_SUID, NO_DEVICES = 1, 2, 4
BIND, RECURSIVE, PRIVATE = 1 << 12, 1 << 14, 1 << 18
DETACH = 2
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
CAPABILITIES_3 = 0x20080522
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
NOBODY = 65534
SCRATCH = "/tmp"
MAX_SCRATCH_FILES = 4096

if sys.platform == "linux":
    # PyDLL keeps Python's lock: a cloned process continues inside of the call.
    libc = ctypes.PyDLL(None, use_errno=True)
    libc.mount.argtypes = [ctypes.c_char_p] * 3 + [ctypes.c_ulong, ctypes.c_char_p]


def clone() -> int:
    """As os.fork, with the child in namespaces of its own. The caller has one thread.

    Raises:
        OSError: namespaces are not allowed.
    """
    flags = NEW_OTHERS if os.geteuid() == 0 else NEW_OTHERS | NEW_USER
    number, python = CLONE[platform.machine()], ctypes.pythonapi
    python.PyOS_BeforeFork()
    pid = libc.syscall(number, flags | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        python.PyOS_AfterFork_Child()
    else:
        python.PyOS_AfterFork_Parent()
    return _checked("clone", pid)


def enter(folders: Sequence[tuple[str, str]], scratch_bytes: int, user: int, group: int) -> None:
    """Build the view, and move into it. folders: where each lies, and its name in the view.

    user, group: of the caller, before it was cloned.
    """
    if user != 0:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{user} {user} 1")
        _write("/proc/self/gid_map", f"{group} {group} 1")
    _mount("", "/", "", RECURSIVE | PRIVATE)
    _mount("tmpfs", "/tmp", "tmpfs", NO_SUID, "size=1m,mode=755")
    os.chdir("/tmp")
    os.mkdir("old")
    _checked("pivot_root", libc.syscall(PIVOT_ROOT[platform.machine()], b".", b"old"))
    os.chdir("/")
    os.mkdir(SCRATCH)  # before the folders, which may lie in it
    size = f"size={scratch_bytes},nr_inodes={MAX_SCRATCH_FILES},mode=1777"
    _mount("tmpfs", SCRATCH, "tmpfs", NO_SUID | NO_DEVICES, size)
    for source, name in [*folders, *((device, device) for device in DEVICES)]:
        if os.path.exists(f"/old{source}"):
            _place(f"/old{source}", name)
    _checked("umount", libc.umount2(b"/old", DETACH))
    os.rmdir("/old")
    _set_attributes("/", AT_RECURSIVE, set_=READ_ONLY | NO_SUID)
    _set_attributes(SCRATCH, 0, clear=READ_ONLY)
    os.setsid()


def drop_privileges() -> None:
    """Become nobody if this is root, in a namespace of users whose processes are counted alone;
    give up every capability; and let no program that is started regain one.
    """
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        _checked("unshare", libc.unshare(NEW_USER))
    header, none = struct.pack("=Ii", CAPABILITIES_3, 0), struct.pack("=6I", *[0] * 6)
    _checked("capset", libc.capset(header, none))
    forbid_new_privileges()
    _checked("prctl", libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))


def forbid_new_privileges() -> None:
    _checked("prctl", libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def _place(source: str, name: str) -> None:
    if os.path.isdir(source):
        os.makedirs(name, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(name), exist_ok=True)
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o444))
    _mount(source, name, "", BIND | RECURSIVE)


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    given = [part.encode("utf-8", "surrogateescape") for part in (source, target, kind, data)]
    done = libc.mount(given[0], given[1], given[2], flags, given[3])
    _checked(f"mount {target}", done)


def _set_attributes(path: str, flags: int, set_: int = 0, clear: int = 0) -> None:
    attributes = struct.pack("=QQQQ", set_, clear, 0, 0)
    done = libc.syscall(MOUNT_SETATTR, AT_FDCWD, path.encode(), flags, attributes, len(attributes))
    _checked(f"mount_setattr {path}", done)


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _checked(what: str, result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result
