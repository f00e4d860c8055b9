"""A small Python process that starts programs: `python -c START`, one request and one reply a line.

It stays outside of the sandbox, has one thread, no packages and no secrets in its environment. A
fork of it costs a millisecond, where a new Python costs twenty.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from typing import Any, NoReturn

from culm.sandbox import bubblewrap, namespaces, program

CHUNK = 1 << 16
REPORT_BYTES = 4096
STATUS = {"MemoryError": "out_of_memory"}


def serve() -> None:
    """Answer requests until the input ends. The first line says how programs are started."""
    requests = sys.stdin.buffer
    setup = json.loads(requests.readline())
    sys.path[:] = [place for place in sys.path if place != setup["source"]]
    while line := requests.readline():
        reply = _Run(setup, json.loads(line)).reply()
        _write_all(1, json.dumps(reply).encode() + b"\n")


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


class _Run:
    """One program, from its start until nothing of it is left."""

    def __init__(self, setup: dict[str, Any], request: dict[str, Any]) -> None:
        self.setup, self.limits = setup, setup["limits"]
        self.nonce = os.urandom(16).hex()
        self.scratch = _scratch(setup["mechanism"])
        self.request = request | {
            "nonce": self.nonce,
            "limits": self.limits,
            "path": [place for place in sys.path if place] + setup["packages"],
            "confined": setup["mechanism"] != "unconfined",
            "scratch": self.scratch,
        }
        self.found = dict.fromkeys(("stdout", "stderr", "report", "status"), b"")
        self.cut: set[str] = set()
        self.late = False

    def reply(self) -> dict[str, Any]:
        started = time.monotonic()
        pipes = {name: os.pipe() for name in self.found}
        with _file(self.request["stdin"].encode("utf-8", "surrogatepass")) as stdin:
            try:
                pid = self._start(stdin.fileno(), {name: pipes[name][1] for name in pipes})
            except OSError as error:
                pid, self.found["status"] = 0, _refused(error)
        for _, write in pipes.values():
            os.close(write)
        reads = {pipes[name][0]: name for name in pipes}
        if pid:
            self._watch(pid, reads, started + self.limits["seconds"])
        for read in reads:
            os.close(read)
        seconds = time.monotonic() - started
        if not self.request["confined"]:
            import shutil

            shutil.rmtree(self.scratch, ignore_errors=True)
        return self._outcome() | {"seconds": seconds, "truncated": bool(self.cut)} | self._texts()

    def _start(self, stdin: int, writes: dict[str, int]) -> int:
        """The new process; its end closes the pipe of the status."""
        mechanism = self.setup["mechanism"]
        pid = namespaces.clone() if mechanism == "namespaces" else os.fork()
        if pid == 0:
            self._become(stdin, writes)
        return pid

    def _become(self, stdin: int, writes: dict[str, int]) -> NoReturn:
        """What the new process does."""
        status = writes["status"]
        try:
            for target, source in enumerate((stdin, writes["stdout"], writes["stderr"])):
                os.dup2(source, target)
            if self.setup["mechanism"] == "bubblewrap":
                self._bubblewrap(writes)
            if self.setup["mechanism"] == "namespaces":
                user, group = self.setup["user"], self.setup["group"]
                namespaces.enter(self.setup["folders"], self.limits["scratch_bytes"], user, group)
            else:
                os.setsid()
            program.first_process(self.request, writes["report"], status)
        except OSError as error:
            program.refuse(status, error)
        finally:
            os._exit(1)

    def _bubblewrap(self, writes: dict[str, int]) -> NoReturn:
        given = _file(json.dumps(self.request).encode())
        descriptors = (given.fileno(), writes["report"], writes["status"])
        for descriptor in descriptors:
            os.set_inheritable(descriptor, True)
        setup = self.setup
        command = bubblewrap.command(
            setup["bubblewrap"], setup["python"], setup["folders"], self.limits["scratch_bytes"],
            setup["environment"], descriptors,
        )  # fmt: skip
        os.execv(command[0], command)

    def _watch(self, pid: int, reads: dict[int, str], deadline: float) -> None:
        """Collect what the program writes until its first process ends, or its time is up."""
        poll = select.poll()
        for read in reads:
            os.set_blocking(read, False)
            poll.register(read, select.POLLIN)
        poll.register(0, 0)  # only whether who asked is gone
        ended = False
        while not ended:
            left = deadline - time.monotonic()
            if left <= 0:
                self.late = True
                break
            for descriptor, event in poll.poll(left * 1000 + 1):
                if descriptor == 0:
                    program.kill_group(pid)
                    sys.exit(1)
                if event & select.POLLIN:
                    self._take(descriptor, reads[descriptor])
                elif reads[descriptor] == "status":
                    ended = True
                else:
                    poll.unregister(descriptor)
        program.kill_group(pid)
        os.waitpid(pid, 0)
        for read, name in reads.items():
            while self._take(read, name):
                pass

    def _take(self, descriptor: int, name: str) -> bool:
        """Keep what has been written so far, up to the limit. False: there is no more."""
        try:
            data = os.read(descriptor, CHUNK)
        except BlockingIOError:
            return False
        most = self.limits["output_bytes"] if name in ("stdout", "stderr") else REPORT_BYTES
        room = most - len(self.found[name])
        if len(data) > room:
            self.cut.add(name)
        self.found[name] += data[: max(room, 0)]
        return bool(data)

    def _texts(self) -> dict[str, str]:
        most = self.limits["output_bytes"]
        texts = {}
        for name in ("stdout", "stderr"):
            texts[name] = self.found[name].decode("utf-8", "replace")
            if name in self.cut:
                texts[name] += f"\n[cut after {most} bytes]"
        return texts

    def _outcome(self) -> dict[str, Any]:
        """Status, exit code and reason."""
        status = _parsed(self.found["status"])
        reports = [_parsed(line) for line in self.found["report"].splitlines()]
        report = next((one for one in reports if one.get("nonce") == self.nonce), {})
        refused = status.get("refused") or report.get("refused")
        if refused and not self.late:
            return _of("refused", None, f"The sandbox could not be set up: {refused}.")
        if self.late:
            return _of("timed_out", None, f"It ran for more than {self.limits['seconds']:g} s.")
        if "exit_code" not in status:
            return _of("killed", None, "Its sandbox was killed.")
        code, cpu = status["exit_code"], status["cpu_seconds"]
        if code == -signal.SIGXCPU or (
            code == -signal.SIGKILL and cpu >= self.limits["cpu_seconds"]
        ):
            most = self.limits["cpu_seconds"]
            return _of("timed_out", code, f"It computed for more than {most} s.")
        if code < 0:
            return _of("killed", code, f"It was killed by signal {_signal(-code)}.")
        end = report.get("end", "exited")
        if end == "finished" and code == 0:
            return _of("passed", code, "")
        if end in ("exited", "finished"):
            when = "at its end" if end == "finished" else "before its last line"
            return _of("failed", code, f"It exited {when}, with code {code}.")
        return _of(STATUS.get(str(end), "failed"), code, f"It raised {end}.")


def _of(status: str, code: int | None, reason: str) -> dict[str, Any]:
    return {"status": status, "exit_code": code, "reason": reason}


def _signal(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else str(number)


def _refused(error: OSError) -> bytes:
    return json.dumps({"refused": error.strerror or str(error)}).encode()


def _parsed(line: bytes) -> dict[str, Any]:
    """What a report says. The program can write to it too, so it may be anything."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _file(data: bytes) -> Any:
    """An open file without a name, at its start."""
    if sys.platform == "linux":
        file = open(os.memfd_create("input"), "w+b", buffering=0)  # noqa: SIM115
    else:
        import tempfile

        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
    file.write(data)
    file.seek(0)
    return file


def _scratch(mechanism: str) -> str:
    if mechanism != "unconfined":
        return namespaces.SCRATCH
    import tempfile  # it imports `random`, whose state programs would share

    return tempfile.mkdtemp(prefix="culm-")
