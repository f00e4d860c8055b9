"""A corpus through the stages of `data.clean`, in several processes and in its own order.

    units -> chunks of about 1 MB -> workers: all steps -> in order: what is seen before -> units

Memory holds a few chunks for each process, and what the indexes of stages need. A chunk that was
cleaned is kept until the corpus is complete (`culm.data.kept_files`).
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from culm.config import SettingError
from culm.data.clean.chunk import Outcome, Texts, Worker, unpack
from culm.data.clean.stage import Index, Rewriter, Stage
from culm.data.clean.strings import texts_of_all, with_strings
from culm.data.divide import Unit
from culm.data.kept_files import KeptFiles
from culm.data.source_file import SourceFile, source_file
from culm.data.stage_facts import Reason, StageFacts
from culm.data.workers import HERE, Pool, Workers

CHUNK = 1 << 20  # bytes of text that a worker cleans at once
SAMPLES, SAMPLE = 5, 200  # kept of what a reason drops, and characters of each


@dataclass
class _Chunk:
    """key: to keep it by; None: it is kept already. cleaned: waits for it."""

    units: list[Unit]
    texts: list[Texts]
    key: str | None
    cleaned: Callable[[], bytes]


class Cleaner:
    """Units without what the stages drop; counts what they did.

    workers: who cleans. folder: where cleaned chunks are kept.
    """

    def __init__(
        self, stages: Sequence[Stage], workers: Workers = HERE, folder: Path | None = None
    ) -> None:
        self.stages, self.workers, self._kept_files = tuple(stages), workers, KeptFiles(folder)
        self._files = [_files_of(stage) for stage in stages]
        self._changes = [Counter[str]() for _ in stages]
        self._dropped: list[dict[str, Reason]] = [{} for _ in stages]
        self._indexes: dict[int, Index] = {}
        self._maskers: list[Rewriter] = []

    @property
    def notes(self) -> Counter[str]:
        """What of the stages' files is left out."""
        return sum((Counter(stage.notes()) for stage in self.stages), Counter[str]())

    @property
    def facts(self) -> tuple[StageFacts, ...]:
        """What each stage did to all units that were given on."""
        return tuple(
            StageFacts(
                settings=stage.model_dump(mode="json"), files=self._files[number],
                versions=dict(stage.versions), changes=dict(sorted(self._changes[number].items())),
                dropped=dict(sorted(self._dropped[number].items())),
            )
            for number, stage in enumerate(self.stages)
        )  # fmt: skip

    def clean(self, units: Iterable[Unit]) -> Iterator[Unit]:
        """The units that stay, as they are after the stages; all, if there are no stages. May be
        asked again, for a second pass over the corpus.

        Raises:
            SettingError: a stage needs a library or a file that is missing, or a process was
                killed.
        """
        if not self.stages:
            yield from units
            return
        self._changes = [Counter[str]() for _ in self.stages]
        self._dropped = [{} for _ in self.stages]
        found = ((n, stage.index()) for n, stage in enumerate(self.stages))
        self._indexes = {number: index for number, index in found if index is not None}
        steps = [stage.build() for stage in self.stages if stage.masks]
        self._maskers = [step for step in steps if isinstance(step, Rewriter)]
        with self.workers.pool(partial(Worker, self.stages)) as pool:
            for chunk in pool.ready(self._chunks(units, pool)):
                yield from self._kept(chunk)

    def forget(self) -> None:
        """Remove the chunks that were kept, once the corpus is complete."""
        self._kept_files.forget()

    def _chunks(self, units: Iterable[Unit], pool: Pool) -> Iterator[_Chunk]:
        for some in _divided(units):
            texts = [texts_of_all(unit.contents) for unit in some]
            key = self._digest(texts)
            if (kept := self._known(key)) is not None:
                yield _Chunk(some, texts, None, partial(bytes, kept))
            else:
                yield _Chunk(some, texts, key, pool.submit(texts))

    def _known(self, key: str) -> bytes | None:
        """A chunk that was cleaned before; None if there is none, or it is damaged."""
        data = self._kept_files.read(key)
        try:
            if data is not None:
                unpack(data)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return None
        return data

    def _digest(self, texts: Sequence[Texts]) -> str:
        """Of the texts and of all that decides what becomes of them."""
        facts = [
            [stage.model_dump_json(), dict(stage.versions), [f.sha256 for f in files.values()]]
            for stage, files in zip(self.stages, self._files, strict=True)
        ]
        written = json.dumps([version("culm"), facts, texts])
        return hashlib.blake2b(written.encode(), digest_size=16).hexdigest()

    def _kept(self, chunk: _Chunk) -> Iterator[Unit]:
        cleaned = chunk.cleaned()
        if chunk.key is not None:
            self._kept_files.write(chunk.key, cleaned)
        outcomes = unpack(cleaned)
        self._find_seen(outcomes)
        for unit, (texts, _), outcome in zip(chunk.units, chunk.texts, outcomes, strict=True):
            for number, changes in outcome.changes.items():
                self._changes[number].update(changes)
            if outcome.dropped is not None:
                self._count(*outcome.dropped, unit, texts)
            elif outcome.texts is None:
                yield unit
            else:
                rest = iter(outcome.texts)
                yield replace(unit, contents=[with_strings(one, rest) for one in unit.contents])

    def _find_seen(self, outcomes: Sequence[Outcome]) -> None:
        """Drop what an index has seen before; later stages have no influence on that."""
        for number, index in self._indexes.items():
            rows = [one for one in outcomes if number in one.marks]
            if not rows:
                continue
            seen = index.seen(np.stack([one.marks[number] for one in rows]))
            for one, known in zip(rows, seen, strict=True):
                if known:
                    one.dropped = (number, "like an earlier document")
                    one.changes = {n: c for n, c in one.changes.items() if n <= number}
                    one.marks = {n: m for n, m in one.marks.items() if n <= number}

    def _count(self, stage: int, reason: str, unit: Unit, texts: Sequence[str]) -> None:
        known = self._dropped[stage].get(reason, Reason(documents=0, bytes=0, samples=()))
        samples = known.samples
        if len(samples) < SAMPLES:
            samples = (*samples, self._sample(texts))
        self._dropped[stage][reason] = Reason(
            documents=known.documents + 1, bytes=known.bytes + unit.size, samples=samples
        )

    def _sample(self, texts: Sequence[str]) -> str:
        """The beginning, in which what the stages would mask is masked."""
        text = "\n".join(texts)[: 2 * SAMPLE]
        for masker in self._maskers:
            text = masker.rewrite(text, Counter())
        return text[:SAMPLE].encode("utf-8", "replace").decode()


def kept_beside(out: Path) -> Path:
    """The hidden folder in which chunks are kept until a corpus is complete."""
    return out.with_name(f".{out.name}.cleaned")


def _files_of(stage: Stage) -> dict[str, SourceFile]:
    for file in stage.files:
        if not file.is_file():
            raise SettingError(f"data.clean: {stage.kind}: there is no file {file}")
    return {str(file): source_file(file) for file in stage.files}


def _divided(units: Iterable[Unit]) -> Iterator[list[Unit]]:
    some: list[Unit] = []
    size = 0
    for unit in units:
        some.append(unit)
        size += unit.size
        if size >= CHUNK:
            yield some
            some, size = [], 0
    if some:
        yield some
