"""A prepared corpus, mapped into memory and read without copying."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from culm.config import SettingError
from culm.data.manifest import File, Manifest, SplitFacts
from culm.data.shards import shard_name

ADVICE = "delete this corpus to prepare it again"


class Prepared:
    """One split. Tokens are numbered through all shards.

    offsets: (documents + 1) int64, where each document starts, and the end of the last.
    fingerprint: of the contents, and of how they were cleaned.
    """

    def __init__(self, folder: Path, split: str, manifest: Manifest, facts: SplitFacts) -> None:
        self.folder, self.split, self.manifest, self.facts = folder, split, manifest, facts
        numbers = range(facts.shards)
        # Views as plain arrays, whose slices cost a fraction of those of a memory map.
        self._tokens = [np.asarray(self._map("tokens", number)) for number in numbers]
        masked = shard_name("learned", 0) in facts.files
        learned = [np.asarray(self._map("learned", number)) for number in numbers if masked]
        self._learned = learned if masked else None
        sizes = [len(tokens) for tokens in self._tokens]
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._bounds: list[int] = self._starts.tolist()
        inner = [
            self._offsets(number, size)[:-1] + start
            for number, size, start in zip(numbers, sizes, self._starts, strict=False)
        ]
        self.offsets = np.concatenate([*inner, self._starts[-1:]])
        sums = "".join(file.sha256 for _, file in sorted(facts.files.items()))
        if manifest.clean:  # settings that left the tokens as they are count too
            sums += repr([(stage.settings, stage.digests) for stage in manifest.clean])
        self.fingerprint = hashlib.sha256(sums.encode()).hexdigest()

    @staticmethod
    def open(folder: str | Path, split: str = "train", tokenizer: str | None = None) -> Prepared:
        """A split of a prepared folder. tokenizer: fingerprint of the one that the model has.

        Raises:
            SettingError: no such split, a file that is missing or truncated, or a corpus that was
                prepared with another tokenizer.
        """
        folder = Path(folder)
        manifest = Manifest.read(folder)
        facts = manifest.splits.get(split)
        if facts is None:
            known = ", ".join(manifest.splits)
            raise SettingError(f"{folder}: there is no split {split!r}; it has {known}")
        if tokenizer is not None and tokenizer != manifest.tokenizer:
            raise SettingError(
                f"{folder}: prepared with another tokenizer than the model's; {ADVICE}"
            )
        for name, file in facts.files.items():
            _check(folder / split / name, file)
        return Prepared(folder, split, manifest, facts)

    @property
    def masked(self) -> bool:
        """Whether some tokens are not learned."""
        return self._learned is not None

    def read(self, start: int, end: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Tokens start..end, and which are learned (None: all)."""
        shard = bisect_right(self._bounds, start) - 1
        if end > self._bounds[shard + 1]:
            cut = self._bounds[shard + 1]
            (tokens, learned), (more, more_learned) = self.read(start, cut), self.read(cut, end)
            both = None
            if learned is not None and more_learned is not None:
                both = np.concatenate([learned, more_learned])
            return np.concatenate([tokens, more]), both
        span = slice(start - self._bounds[shard], end - self._bounds[shard])
        learned = None if self._learned is None else self._learned[shard][span]
        return self._tokens[shard][span], learned

    def shards(self) -> Iterator[np.ndarray]:
        """The tokens of each shard."""
        yield from self._tokens

    def column(self, name: str) -> np.ndarray:
        """(documents,) or (tokens,) fp32, the number of each document or token in a column."""
        return np.concatenate([self._map(name, number) for number in range(self.facts.shards)])

    def learned_positions(self) -> Iterator[np.ndarray]:
        """Numbers of the tokens that are learned, shard by shard, where some are not."""
        for start, learned in zip(self._starts, self._learned or (), strict=False):
            yield np.flatnonzero(learned) + start

    def _offsets(self, number: int, tokens: int) -> np.ndarray:
        """(documents of a shard + 1,), which cannot lead outside of its tokens."""
        offsets = self._map("offsets", number)
        if offsets[0] != 0 or offsets[-1] != tokens or (np.diff(offsets) < 0).any():
            path = self.folder / self.split / shard_name("offsets", number)
            raise SettingError(f"{path}: damaged; {ADVICE}")
        return offsets

    def _map(self, kind: str, number: int) -> np.ndarray:
        path = self.folder / self.split / shard_name(kind, number)
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except PermissionError:
            raise SettingError(f"{path}: may not be read; give this user access") from None
        except Exception as error:  # a damaged header is read as Python, with errors of its own
            raise SettingError(f"{path}: cannot be read ({error}); {ADVICE}") from None


def verify(folder: Path) -> None:
    """Read every file of a prepared folder, and compare it with what was written.

    Raises:
        SettingError: one was changed since.
    """
    for split, facts in Manifest.read(folder).splits.items():
        for name, file in facts.files.items():
            path = folder / split / name
            _check(path, file)
            if File.of(path) != file:
                raise SettingError(
                    f"{path}: changed since it was written (SHA-256 differs); {ADVICE}"
                )


def _check(path: Path, file: File) -> None:
    if not path.is_file():
        raise SettingError(f"{path}: missing; {ADVICE}")
    size = path.stat().st_size
    if size != file.bytes:
        raise SettingError(f"{path}: {size} bytes where {file.bytes} were written; {ADVICE}")
