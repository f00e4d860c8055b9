"""A small Python process that starts programs: `python -c START`, one request and one reply a line.

It stays outside of the sandbox, has one thread, no packages and no secrets in its environment. A
fork of it costs a millisecond, where a new Python costs twenty.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from typing import Any, NoReturn

from culm.sandbox import bubblewrap, namespaces, program
from culm.sandbox.memory import resident_bytes
from culm.sandbox.verdict import Stop, verdict

CHUNK = 1 << 16
REPORT_BYTES = 4096
WATCH_SECONDS = 0.05  # between two looks at the memory


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
        self.stop: Stop = None

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
        found = verdict(
            self.found["status"], self.found["report"], self.nonce, self.stop, self.limits
        )
        return found | {"seconds": seconds, "truncated": bool(self.cut)} | self._texts()

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
        looked = time.monotonic()
        while not self.stop:
            now = time.monotonic()
            if now >= deadline:
                self.stop = "time"
            if now >= looked + WATCH_SECONDS:
                looked = now
                if resident_bytes(pid) > self.limits["memory_bytes"]:
                    self.stop = "memory"
            if not self._wait(poll, pid, reads, min(WATCH_SECONDS, max(deadline - now, 0))):
                break
        program.kill_group(pid)
        os.waitpid(pid, 0)
        for read, name in reads.items():
            while self._take(read, name):
                pass

    def _wait(self, poll: Any, pid: int, reads: dict[int, str], seconds: float) -> bool:
        """Take what comes within some time. False: the first process has ended."""
        for descriptor, event in poll.poll(seconds * 1000 + 1):
            if descriptor == 0:
                program.kill_group(pid)
                sys.exit(1)
            if event & select.POLLIN:
                self._take(descriptor, reads[descriptor])
            elif reads[descriptor] == "status":
                return False
            else:
                poll.unregister(descriptor)
        return True

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


def _refused(error: OSError) -> bytes:
    return json.dumps({"refused": error.strerror or str(error)}).encode()


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
