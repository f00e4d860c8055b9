"""A seccomp filter: system calls that a confined program is refused, with EPERM.

The filter is a program for the kernel's BPF machine, seccomp(2). It reads the number of a system
call and its arguments from `struct seccomp_data`:

    offset  0: number   4: architecture   16: argument 0   24: argument 1   (low halves)
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

# System calls: their numbers on x86_64 and aarch64; None where there is no such call.
DENIED: dict[str, tuple[int | None, int | None]] = {
    # sockets of every family; socketpair stays, as asyncio needs it
    "socket": (41, 198),
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kcmp": (312, 272), "pidfd_getfd": (438, 438), "process_madvise": (440, 440),
    # namespaces and mounts
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "mount_setattr": (442, 442), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265), "mknod": (133, None), "mknodat": (259, 33),
    # parts of the kernel where most holes were found
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "fanotify_init": (300, 262), "modify_ldt": (154, None), "personality": (135, 92),
    # memory that no limit counts
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194),
    "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    # the machine
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "reboot": (169, 142),
    "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89), "syslog": (103, 116),
    "quotactl": (179, 60), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "adjtimex": (159, 171), "clock_adjtime": (305, 266), "sethostname": (170, 161),
    "setdomainname": (171, 162), "iopl": (172, None), "ioperm": (173, None),
    "vhangup": (153, 58),
}  # fmt: skip

MACHINES = ("x86_64", "aarch64")
ARCHITECTURE = (0xC000003E, 0xC00000B7)
CLONE, IOCTL, CLONE3 = (56, 220), (16, 29), 435
X32 = 0x40000000  # from here on: a second set of numbers for the calls of x86_64
NEW_NAMESPACES = 0x7E020000  # flags of clone: user, mount, pid, net, ipc, uts and cgroup
TIOCSTI, TIOCLINUX = 0x5412, 0x541C  # type into the terminal of somebody else

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000
PR_SET_SECCOMP, MODE_FILTER = 22, 2


def supported() -> bool:
    """Whether the numbers of this machine's system calls are known here."""
    return platform.machine() in MACHINES


def program(machine: str) -> bytes:
    """The filter for a machine, as an array of `struct sock_filter`."""
    which = MACHINES.index(machine)
    eperm, enosys = REFUSE | errno.EPERM, REFUSE | errno.ENOSYS
    steps = [
        (LOAD, 0, 0, 4),
        *_returns_unless(EQUAL, ARCHITECTURE[which], KILL),
        (LOAD, 0, 0, 0),
    ]
    if machine == "x86_64":
        steps += _returns_if(AT_LEAST, X32, eperm)
    for numbers in DENIED.values():
        number = numbers[which]
        if number is not None:
            steps += _returns_if(EQUAL, number, eperm)
    # The flags of clone3 lie in memory, where no filter sees them; libraries fall back to clone.
    steps += _returns_if(EQUAL, CLONE3, enosys)
    steps += [(EQUAL, 0, 3, CLONE[which]), (LOAD, 0, 0, 16)]
    steps += _returns_if(ANY_BIT, NEW_NAMESPACES, eperm)
    steps += [(LOAD, 0, 0, 0), (EQUAL, 0, 5, IOCTL[which]), (LOAD, 0, 0, 24)]
    steps += _returns_if(EQUAL, TIOCSTI, eperm)
    steps += _returns_if(EQUAL, TIOCLINUX, eperm)
    steps += [(RETURN, 0, 0, ALLOW)]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def _returns_if(test: int, value: int, verdict: int) -> list[tuple[int, int, int, int]]:
    return [(test, 0, 1, value), (RETURN, 0, 0, verdict)]


def _returns_unless(test: int, value: int, verdict: int) -> list[tuple[int, int, int, int]]:
    return [(test, 1, 0, value), (RETURN, 0, 0, verdict)]


def install() -> None:
    """Filter the system calls of this process and of all that it starts, for good.

    Raises:
        OSError: the kernel refuses the filter.
    """
    steps = program(platform.machine())
    buffer = ctypes.create_string_buffer(steps, len(steps))
    # struct sock_fprog: the number of steps, padding, and where they lie
    filter_ = struct.pack("@HP", len(steps) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_SECCOMP, MODE_FILTER, ctypes.c_char_p(filter_), 0, 0):
        code = ctypes.get_errno()
        raise OSError(code, f"seccomp: {os.strerror(code)}")
