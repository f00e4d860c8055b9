"""A template process as its user sees it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from pathlib import Path

from culm.sandbox import view
from culm.sandbox.limits import Limits, Mechanism
from culm.sandbox.outcome import Outcome, Program

SOURCE = str(Path(__file__).parents[2])
START = (
    f"import sys; sys.path.insert(0, {SOURCE!r}); from culm.sandbox.template import serve; serve()"
)
OPTIONS = ("-s", "-S", "-P", "-B")  # no user's packages, no .pth files, no bytecode written
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",  # the order of a set is the same in each run
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
GRACE = 10.0  # seconds beyond a program's limit, after which the template itself is stuck


class Worker:
    """Runs one program after another, each in a new sandbox. Starts when first used."""

    def __init__(self, limits: Limits, mechanism: Mechanism) -> None:
        self.limits, self.mechanism = limits, mechanism
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, program: Program) -> Outcome:
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        guard = threading.Timer(self.limits.seconds + GRACE, process.kill)
        guard.start()
        try:
            request = {"code": program.code, "stdin": program.stdin}
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            reply = process.stdout.readline()
        except BrokenPipeError:
            reply = b""
        except BaseException:  # its reply must not become that of the next program
            self.close()
            raise
        finally:
            guard.cancel()
        if not reply.endswith(b"\n"):
            self.close()
            why = "The process that starts programs did not answer."
            return Outcome("refused", None, "", "", 0.0, False, why, self.mechanism)
        return Outcome(mechanism=self.mechanism, **json.loads(reply))

    def close(self) -> None:
        """End the template, and a program that still runs."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None:
            return self._process
        command = [view.python(), *OPTIONS, "-c", START]
        self._process = process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=ENVIRONMENT, cwd="/", start_new_session=True,
        )  # fmt: skip
        assert process.stdin is not None
        setup = {
            "mechanism": self.mechanism, "limits": self.limits.model_dump(), "source": SOURCE,
            "packages": view.packages(), "folders": view.folders(),
            "user": os.geteuid(), "group": os.getegid(), "python": [view.python(), *OPTIONS],
            "bubblewrap": shutil.which("bwrap"), "environment": ENVIRONMENT,
        }  # fmt: skip
        process.stdin.write(json.dumps(setup).encode() + b"\n")
        return process

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
