"""Memory at size, of the whole process: text is read, learned from and prepared as a stream."""

import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(sys.platform == "win32", reason="no resource usage there"),
]

MEGABYTE = 1_000_000
CODE = """
import sys
from culm.data.format.document import DocumentFormat
from culm.data.prepare import prepare
from culm.source import open_source
from culm.data.texts import texts_of
from culm.tokenizer.bytes import Bytes
from culm.tokenizer.train import BPE
from culm.train.memory import peak_bytes

corpus, folder, kind = sys.argv[1:]
source, format = open_source(corpus), DocumentFormat()
settings = BPE(vocabulary=1000) if kind == "bpe" else Bytes()
manifest = prepare(source, format, settings.build(texts_of(source, format)), folder)
print(manifest.bytes, peak_bytes())  # ru_maxrss would hold the peak of the process that forked it
"""


@pytest.fixture
def room() -> Iterator[Path]:
    """A folder that is gone after the test: pytest would keep gigabytes."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def write(path: Path, size: int, end: str) -> None:
    """About so many bytes of random words."""
    chance, letters = random.Random(0), "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(chance.choices(letters, k=chance.randint(2, 9))) for _ in range(5000)]
    written = 0
    with path.open("w") as file:
        while written < size:
            written += file.write(" ".join(chance.choices(words, k=5000)) + end)


@pytest.mark.parametrize(
    ("kind", "size", "end"),
    [("bpe", 300 * MEGABYTE, " "), ("bytes", 1000 * MEGABYTE, "\n")],
    ids=["a line of 300 MB", "a file of 1 GB"],
)
def test_memory_is_bounded(kind: str, size: int, end: str, room: Path) -> None:
    corpus = room / "corpus.txt"
    write(corpus, size, end)
    line = [sys.executable, "-c", CODE, corpus, room / "prepared", kind]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    prepared, peak = map(int, done.stdout.split())
    assert prepared == corpus.stat().st_size >= size
    assert peak < 600 * MEGABYTE
