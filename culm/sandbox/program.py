"""The confined side: limits, the filter, then the program itself.

    template --- clone --- first process of the sandbox --- fork --- the program
                           waits for the program, writes its exit code to `status`

The program reports through `report` that it reached its last line.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import sys
import threading
import types
from typing import Any, NoReturn

from culm.sandbox import namespaces, seccomp

if sys.platform != "win32":
    import fcntl
    import resource

REPORT, STATUS = 3, 4  # descriptors; the program has the first alone
REAP_MILLISECONDS = 100
READY = b"\n"  # the sandbox is set up; what comes after it is the program's doing


def first_process(request: dict[str, Any], report: int, status: int) -> NoReturn:
    """Run the program, reap all of its processes, and write how it ended to `status`."""
    _keep(report, status)
    try:
        if request["confined"]:
            namespaces.drop_privileges()
        os.write(STATUS, READY)
        pid = os.fork()
    except OSError as error:
        refuse(STATUS, error)
    if pid == 0:
        os.close(STATUS)
        _program(request)
    for descriptor in (0, 1, 2, REPORT):
        os.close(descriptor)
    code, cpu = _ended(pid)
    os.write(STATUS, json.dumps({"exit_code": code, "cpu_seconds": cpu}).encode())
    os._exit(0)


def _keep(report: int, status: int) -> None:
    """Give these two their places, and close every other file of the template."""
    high = [fcntl.fcntl(one, fcntl.F_DUPFD, STATUS + 1) for one in (report, status)]
    for descriptor, place in zip(high, (REPORT, STATUS), strict=True):
        os.dup2(descriptor, place)
    os.closerange(STATUS + 1, 1 << 16)


def _ended(pid: int) -> tuple[int, float]:
    """Exit code and CPU seconds of the program, when it ended.

    If nobody reads the status any more, this process ends, and the sandbox with it: bubblewrap's
    own process, which has given up its rights, could not kill it.
    """
    poll = select.poll()
    poll.register(STATUS, 0)
    linux = sys.platform == "linux"
    if linux:
        poll.register(os.pidfd_open(pid), select.POLLIN)
    while True:
        for descriptor, _ in poll.poll(REAP_MILLISECONDS if linux else 0):
            if descriptor == STATUS:
                os.killpg(0, signal.SIGKILL)  # without a namespace, this kills the program
                os._exit(1)
        while True:  # also children whose parents ended before them
            ended, how, usage = os.wait4(-1, os.WNOHANG if linux else 0)
            if ended == pid:
                return os.waitstatus_to_exitcode(how), usage.ru_utime + usage.ru_stime
            if ended == 0:
                break


def main() -> NoReturn:
    """What bubblewrap starts. Its arguments are descriptors: of the request, report and status."""
    given, report, status = map(int, sys.argv[1:])
    with open(given, encoding="utf-8") as file:
        request = json.load(file)
    first_process(request, report, status)


def refuse(status: int, error: OSError) -> NoReturn:
    """Say that the sandbox could not be set up."""
    os.write(status, json.dumps({"refused": error.strerror or str(error)}).encode())
    os._exit(1)


def _program(request: dict[str, Any]) -> NoReturn:
    """The process of the program. It ends without Python's own way out, which is slow."""
    try:
        _limit(request["limits"], request["confined"])
        if request["confined"]:
            seccomp.install()
    except (OSError, ValueError) as error:
        os.write(REPORT, json.dumps({"nonce": request["nonce"], "refused": str(error)}).encode())
        os._exit(1)
    _run(request["code"], request["nonce"], request["scratch"], request["path"])


def _limit(limits: dict[str, int], confined: bool) -> None:
    cpu, memory = limits["cpu_seconds"], limits["memory_bytes"]
    wanted = {
        "CPU": (cpu, cpu + 1),  # the first can be ignored, the second cannot
        "AS": (memory, memory),
        "FSIZE": (limits["file_bytes"],) * 2,
        "NOFILE": (limits["open_files"],) * 2,
        "CORE": (0, 0),
    }
    if confined:
        # With the first process of the sandbox. Without a namespace, all of the user's would count.
        wanted["NPROC"] = (limits["processes"] + 1,) * 2
        wanted["MSGQUEUE"] = wanted["MEMLOCK"] = (0, 0)
    for name, (soft, hard) in wanted.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        most = resource.getrlimit(kind)[1]
        if most != resource.RLIM_INFINITY:
            soft, hard = min(soft, most), min(hard, most)
        try:
            resource.setrlimit(kind, (soft, hard))
        except (OSError, ValueError):
            if confined:
                raise


def _run(code: str, nonce: str, scratch: str, path: list[str]) -> NoReturn:
    """Run the code as `__main__`, as far as its last line; then say so, with the nonce."""
    os.chdir(scratch)
    file = os.path.join(scratch, "program.py")
    with open(file, "wb") as written:
        written.write(code.encode("utf-8", "surrogatepass"))
    main_module = types.ModuleType("__main__")
    main_module.__dict__.update(__file__=file, __builtins__=__builtins__)
    for name in [name for name in sys.modules if name.split(".")[0] == "culm"]:
        del sys.modules[name]
    sys.modules["__main__"] = main_module
    sys.argv, sys.path, sys.executable = [file], [scratch, *path], sys._base_executable  # type: ignore[attr-defined]
    main_module.__dict__.update(exit=sys.exit, quit=sys.exit)
    exit_code, end, pid = 0, "finished", os.getpid()
    leave, write, dumps = os._exit, os.write, json.dumps
    try:
        exec(compile(code, file, "exec", dont_inherit=True), main_module.__dict__)
    except SystemExit as error:
        exit_code, end = _exit_code(error), "exited"
    except BaseException as error:
        exit_code, end = 1, type(error).__name__
        trace = error.__traceback__
        error = error.with_traceback(trace.tb_next if trace else None)
        sys.__excepthook__(type(error), error, error.__traceback__)
    _finish()
    if os.getpid() == pid:  # and not a child that came this far
        write(REPORT, f"\n{dumps({'nonce': nonce, 'end': end})}\n".encode())
    leave(exit_code)


def _exit_code(error: SystemExit) -> int:
    if error.code is None or isinstance(error.code, int):
        return (error.code or 0) & 0xFF
    print(error.code, file=sys.stderr)
    return 1


def _finish() -> None:
    """What Python does at its end: wait for threads, call exit handlers, flush."""
    steps: list[Any] = [threading._shutdown, atexit._run_exitfuncs]  # type: ignore[attr-defined]
    streams = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    for step in [*steps, *(stream.flush for stream in streams if stream is not None)]:
        try:
            step()
        except BaseException as error:
            sys.__excepthook__(type(error), error, error.__traceback__)


def kill_group(pid: int) -> None:
    """Kill a process and its group."""
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, signal.SIGKILL)
        except OSError:
            continue
