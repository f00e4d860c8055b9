"""The decoding step of ARM's CPUs (NEON), emulated by QEMU, beside that of this machine.

It needs Debian's packages qemu-user and g++-aarch64-linux-gnu. The emulated program gets a copy of
this process's memory at the same addresses, so it reads the same model, cache and tokens.
"""

import ctypes
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fused_models import checked_steps, here
from test_instruction_sets import CASES

import culm
from culm.compiled import FASTEST_FIRST, OPTIONS
from culm.engine import fused

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
PAGE = 1 << 16
TRIALS = 5  # an address may be taken by the emulator itself

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux" or not (shutil.which(COMPILER) and shutil.which(EMULATOR)),
        reason=f"{COMPILER} or {EMULATOR} is not installed",
    ),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (neon,) = (one for one in FASTEST_FIRST if one.name == "NEON")
    out = tmp_path_factory.mktemp("emulated") / "decode"
    options = [one for one in (*OPTIONS, *neon.options) if one not in ("-shared", "-fPIC")]
    source = Path(__file__).with_name("emulated.cpp")
    include = f"-I{Path(culm.__file__).parent}"
    command = [COMPILER, *options, "-static", include, str(source), "-o", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    return out


def write_memory(path: Path) -> None:
    """What this process may write, without the libraries' own variables."""
    regions = list[tuple[int, int, int]]()
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, rights, *_, name = [*line.split(maxsplit=5), ""][:6]
        if rights.startswith("rw") and name.strip() in ("", "[heap]"):
            start, end = (int(one, 16) for one in addresses.split("-"))
            regions.append((start, end - start, 0))
    offset = 8 + 24 * len(regions)
    for number, (start, size, _) in enumerate(regions):
        offset += -offset % PAGE
        regions[number] = start, size, offset
        offset += size
    own = os.open("/proc/self/mem", os.O_RDONLY)
    with path.open("wb") as file:
        file.write(struct.pack("Q", len(regions)))
        file.writelines(struct.pack("QQQ", *region) for region in regions)
        for start, size, place in regions:
            file.seek(place)
            at = 0
            while at < size and (part := os.pread(own, min(1 << 24, size - at), start + at)):
                file.write(part)
                at += len(part)
        file.truncate(offset)
    os.close(own)


@here
@pytest.mark.parametrize(("shape", "weights", "kind"), CASES)
@torch.inference_mode()
def test_logits_are_those_of_this_machine(program, tmp_path, monkeypatch, shape, weights, kind):
    """But for the order of sums; with bf16, what is multiplied is rounded to it on both sides."""
    library, differences = fused.library(), list[float]()

    class Both:
        def culm_decode(self, model, rows, tokens, positions, logits, threads) -> None:
            memory, out = tmp_path / "memory", tmp_path / "logits"
            vocabulary = model.head.outputs
            addresses = [ctypes.addressof(one) for one in (model, tokens, positions)]
            given = [memory, addresses[0], rows, *addresses[1:], vocabulary, out]
            for _ in range(TRIALS):
                write_memory(memory)
                if not subprocess.run(
                    [EMULATOR, "-cpu", "max", program, *map(str, given)]
                ).returncode:
                    break
            library.culm_decode(model, rows, tokens, positions, logits, threads)
            theirs = np.fromfile(out, np.float32)
            pointer = ctypes.cast(logits, ctypes.POINTER(ctypes.c_float))
            ours = np.ctypeslib.as_array(pointer, theirs.shape)
            differences.append(float(np.abs(theirs - ours).max() / np.abs(ours).max()))
            out.unlink()

    monkeypatch.setattr(fused, "library", Both)
    checked_steps(shape, weights, [1, 4, 9, 13, 16, 20, 2, 3, 5], kind)  # nine rows: in panels
    assert len(differences) >= 4
    if weights != "bf16":  # sums in another order may round an activation to the next code
        assert sorted(differences)[-2] <= 1e-5
    assert max(differences) <= (5e-3 if weights == "bf16" else 1e-2)
