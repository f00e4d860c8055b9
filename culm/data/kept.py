"""Batches of tokens that are kept until a corpus is complete (`culm.data.kept_files`)."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from culm.data.divide import Unit
from culm.data.example import RecordFormat
from culm.data.kept_files import KeptFiles
from culm.data.shards import Document
from culm.tokenizer.tokenizer import Tokenizer


class Kept:
    """The batches of one corpus. out: the folder of the corpus to be."""

    def __init__(self, out: Path, format: RecordFormat, tokenizer: Tokenizer) -> None:
        self._files = KeptFiles(out.with_name(f".{out.name}.tokens"))
        template = None if format.kind == "document" else tokenizer.template_fingerprint
        self._facts = [
            version("culm"), format.model_dump_json(), tokenizer.fingerprint, template,
        ]  # fmt: skip
        self.found = 0  # batches that were there

    def key(self, units: Sequence[Unit]) -> str:
        """Of a batch."""
        digest = hashlib.blake2b(json.dumps(self._facts).encode(), digest_size=16)
        for unit in units:
            facts: list[object] = [len(unit.contents), unit.numbers, unit.difficulty]
            for content in unit.contents:
                if isinstance(content, str):  # as it is, since it is most of a corpus
                    text = content.encode("utf-8", "surrogatepass")
                    facts.append(len(text))
                    digest.update(text)
                else:
                    facts.append(content)
            digest.update(json.dumps(facts, default=str).encode())
        return digest.hexdigest()

    def read(self, key: str) -> tuple[list[list[Document]], Counter[str]] | None:
        """The documents of each unit of a batch, and what was counted; None if it is not there, or
        damaged.
        """
        if (data := self._files.read(key)) is None:
            return None
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                units = _unpacked({name: arrays[name] for name in arrays})
                counts = Counter(json.loads(bytes(arrays["counts"])))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return None
        self.found += 1
        return units, counts

    def write(self, key: str, units: Sequence[Sequence[Document]], counts: Counter[str]) -> None:
        """Keep a batch; at once or not at all."""
        counted = np.frombuffer(json.dumps(counts).encode(), dtype=np.uint8)
        arrays, packed = {"counts": counted, **_packed(units)}, io.BytesIO()
        np.savez(packed, allow_pickle=False, **arrays)
        self._files.write(key, packed.getbuffer())

    def forget(self) -> None:
        """Remove what was kept."""
        self._files.forget()


def _packed(units: Sequence[Sequence[Document]]) -> dict[str, np.ndarray]:
    """Arrays of a batch: all values end to end, and how many each document has."""
    documents = [one for unit in units for one in unit]
    arrays = {
        "units": np.array([len(unit) for unit in units]),
        "sizes": np.array([len(tokens) for tokens, _, _ in documents]),
        "tokens": _joined([tokens for tokens, _, _ in documents], np.uint32),
        "learned": np.packbits(_joined([learned for _, learned, _ in documents], np.bool_)),
    }
    for place in range(len(documents[0][2]) if documents else 0):
        columns = [numbers[place] for _, _, numbers in documents]
        arrays[f"column{place}"] = _joined(columns, np.float64)
        arrays[f"lengths{place}"] = np.array([len(column) for column in columns])
    return arrays


def _joined(parts: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype, copy=False)


def _unpacked(arrays: dict[str, np.ndarray]) -> list[list[Document]]:
    sizes = arrays["sizes"]
    tokens = np.split(arrays["tokens"], sizes.cumsum()[:-1])
    bits = np.unpackbits(arrays["learned"], count=int(sizes.sum())).astype(bool)
    learned = np.split(bits, sizes.cumsum()[:-1])
    columns = []
    for place in range(sum(name.startswith("column") for name in arrays)):
        lengths = arrays[f"lengths{place}"]
        columns.append(np.split(arrays[f"column{place}"], lengths.cumsum()[:-1]))
    numbers = list(zip(*columns, strict=True)) if columns else [()] * len(sizes)
    documents = iter(zip(tokens, learned, numbers, strict=True)) if len(sizes) else iter(())
    return [[next(documents) for _ in range(count)] for count in arrays["units"]]
