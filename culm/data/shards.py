"""Token shards: `.npy` files that grow while they are written, and are mapped to be read.

    train/tokens-00000.npy     uint16 or uint32, documents end to end
    train/offsets-00000.npy    int64, where each document starts, and the end
    train/learned-00000.npy    bool; only where some token is not learned
    train/margin-00000.npy     float32, a number for each document (or each token, NaN where it has
                               none); one file for each column

A document never crosses from one shard into the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from culm.data.manifest import File, SplitFacts

SHARD_TOKENS = 1 << 28
KINDS = ("tokens", "offsets", "learned")

Document = tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]  # tokens, learned, columns


def shard_name(kind: str, number: int) -> str:
    return f"{kind}-{number:05}.npy"


class ArrayWriter:
    """A one-dimensional `.npy` file that takes values as they come."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self._dtype, self._count = dtype, 0
        self._file = path.open("wb")
        self._header()

    def _header(self) -> None:
        # numpy leaves room in the header for the length to grow, so it can be written twice.
        facts = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._count,)}
        self._file.seek(0)
        np.lib.format.write_array_header_1_0(self._file, facts)

    def append(self, values: np.ndarray) -> None:
        self._file.write(values.astype(self._dtype, copy=False).tobytes())
        self._count += len(values)

    def close(self) -> None:
        """Finish the file; also after an error, when what was written is thrown away."""
        with self._file:
            self._header()


class SplitWriter:
    """One split of a corpus, document by document."""

    def __init__(
        self,
        folder: Path,
        vocabulary: int,
        columns: Sequence[str] = (),
        limit: int = SHARD_TOKENS,
    ) -> None:
        folder.mkdir()
        self._folder, self._vocabulary, self._limit = folder, vocabulary, limit
        self._columns = tuple(columns)
        self._writers: dict[str, ArrayWriter] = {}
        self._filled = self._shards = 0
        self.documents = self.tokens = self.learned = self.bytes = 0

    def append(self, documents: Sequence[Document], bytes: int) -> None:
        """Documents that belong together, into one shard. bytes: of their text."""
        size = sum(len(tokens) for tokens, _, _ in documents)
        if not self._writers or (self._filled and self._filled + size > self._limit):
            self._next_shard()
        for tokens, learned, numbers in documents:
            for name, values in zip(self._columns, numbers, strict=True):
                self._writers[name].append(values)
            self._filled += len(tokens)
            self._writers["tokens"].append(tokens)
            self._writers["learned"].append(learned)
            self._writers["offsets"].append(np.array([self._filled]))
            self.documents += 1
            self.tokens += len(tokens)
            self.learned += int(learned.sum())
        self.bytes += bytes

    def _next_shard(self) -> None:
        self.close()
        dtype = np.uint16 if self._vocabulary <= 1 << 16 else np.uint32
        kinds = dict(zip(KINDS, (dtype, np.int64, np.bool_), strict=True))
        for kind, of in {**kinds, **dict.fromkeys(self._columns, np.float32)}.items():
            path = self._folder / shard_name(kind, self._shards)
            self._writers[kind] = ArrayWriter(path, np.dtype(of))
        self._writers["offsets"].append(np.array([0]))
        self._shards, self._filled = self._shards + 1, 0

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def facts(self) -> SplitFacts:
        """What was written; closes the files."""
        self.close()
        if self.learned == self.tokens:  # then the mask says nothing
            for path in self._folder.glob("learned-*.npy"):
                path.unlink()
        return SplitFacts(
            documents=self.documents,
            tokens=self.tokens,
            learned=self.learned,
            bytes=self.bytes,
            shards=self._shards,
            files={path.name: File.of(path) for path in sorted(self._folder.glob("*.npy"))},
        )
