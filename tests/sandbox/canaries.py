"""What an attempt must not touch: a file, sockets, a process, shared memory, a secret."""

import ctypes
import os
import secrets
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

PRELUDE = "import ctypes, os, signal, socket, subprocess, sys\nlibc = ctypes.CDLL(None)\n"
libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class Canaries:
    """Made before an attempt; `touched` says what it reached."""

    def __init__(self, folder: Path) -> None:
        self.token = secrets.token_hex(16)
        self.home = folder
        folder.chmod(0o777)  # its own rights protect nothing
        self.file = folder / "secret"
        self.file.write_text(self.token)
        self.file.chmod(0o666)
        self.descriptor = os.open(self.file, os.O_RDONLY)
        os.set_inheritable(self.descriptor, True)
        name = f"culm-test-{secrets.token_hex(8)}"
        self.loose = [Path("/tmp") / name, Path("/dev/shm") / name]
        self.sockets = [
            socket.create_server(("127.0.0.1", 0)),
            socket.socket(type=socket.SOCK_DGRAM),
        ]
        self.sockets[1].bind(("127.0.0.1", 0))
        for address in (str(folder / "socket"), f"\0{name}"):
            self.sockets.append(socket.socket(socket.AF_UNIX))
            self.sockets[-1].bind(address)
            self.sockets[-1].listen()
        (folder / "socket").chmod(0o777)
        for one in self.sockets:
            one.setblocking(False)
        self.environment = os.environ | {"CANARY": self.token}
        self.process = subprocess.Popen(["sleep", "60"], env=self.environment, cwd=folder)
        self.key = secrets.randbelow(1 << 30)
        self.memory = libc.shmget(self.key, 4096, 0o1666)
        self.seen = self._state()
        self.targets = {
            "file": str(self.file), "home": str(folder), "pid": self.process.pid, "abstract": name,
            "tcp": self.sockets[0].getsockname()[1], "udp": self.sockets[1].getsockname()[1],
            "key": self.key, "tmp": str(self.loose[0]), "shm": str(self.loose[1]),
        }  # fmt: skip

    def program(self, attempt: str) -> str:
        return f"C = {self.targets!r}\n{PRELUDE}{textwrap.dedent(attempt)}"

    def plainly(self, attempt: str) -> str:
        """What an attempt prints without a sandbox."""
        folder = self.home.parent / "work"
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-I", "-S", "-c", self.program(attempt)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=self.environment, cwd=folder,
            close_fds=False, timeout=20,
        )  # fmt: skip
        return done.stdout + done.stderr

    def touched(self, printed: str) -> list[str]:
        found = [word for word in ("WORKED",) if word in printed.replace("print('WORKED')", "")]
        found += ["secret"] if self.token in printed else []
        found += ["files"] if self._state() != self.seen else []
        found += ["process"] if self.process.poll() is not None else []
        found += ["loose files"] if any(path.exists() for path in self.loose) else []
        for one in self.sockets:
            try:
                one.recv(10) if one.type == socket.SOCK_DGRAM else one.accept()[0].close()
                found.append("socket")
            except BlockingIOError:
                pass
        return found

    def _state(self) -> list[object]:
        names = sorted(os.listdir(self.home))
        text = self.file.read_text() if self.file.exists() else None
        mode = self.file.stat().st_mode if self.file.exists() else None
        return [names, text, mode]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.descriptor)
        libc.shmctl(self.memory, 0, None)
        for one in self.sockets:
            one.close()
        for path in self.loose:
            path.unlink(missing_ok=True)


def alive(marker: str) -> list[int]:
    """Processes with a marker in their environment."""
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and marker in Path(f"/proc/{name}/environ").read_text("latin-1"):
                found.append(int(name))
        except OSError:
            continue
    return found
