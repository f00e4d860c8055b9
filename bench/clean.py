"""What cleaning finds and how fast it is, on a folder of .jsonl files with a field text.

python bench/clean.py FOLDER planted             planted near-duplicates, by similarity
python bench/clean.py FOLDER speeds              MB/s of each stage in one process
python bench/clean.py FOLDER many MB PROCESSES   near_duplicates on the text with other words
python bench/clean.py FOLDER prepare MB WORKERS  `culm prepare` of a file with planted duplicates
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from culm.config import parse
from culm.data.clean.cleaner import Cleaner
from culm.data.clean.minhash import Seen, signature
from culm.data.clean.near_duplicates import NearDuplicates
from culm.data.divide import Unit
from culm.data.settings import DataConfig
from culm.data.workers import Workers
from culm.source import open_source
from culm.source.source import bytes_in

SIMILARITIES = (0.5, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
STAGES = ("unicode", "language", "repetition", "gopher", "c4", "fineweb", "pii", "near_duplicates")
PAIRS, WORDS, SECONDS = 400, 304, 4.0


def changed(words: list[str], similarity: float, chance: random.Random) -> list[str]:
    """Words of which evenly spread ones are replaced, down to a Jaccard similarity of 5-grams."""
    total = len(words) - 4
    count = round(total * (1 - similarity) / (1 + similarity) / 5)
    found, offset = list(words), chance.random()
    for n in range(count):
        found[4 + int((n + offset) * (total - 4) / count)] = f"x{chance.randrange(10**9)}"
    return found


def planted(texts: list[str]) -> None:
    """Each pair in an index of its own text and of all others: a find of another one is false."""
    chance = random.Random(0)
    words = [word for text in texts for word in text.lower().split() if word.isalpha()]
    starts = chance.sample(range(len(words) // WORDS), PAIRS)
    first = [words[start * WORDS : (start + 1) * WORDS] for start in starts]
    signed = np.stack([signature(" ".join(one), 5) for one in first])
    for similarity in SIMILARITIES:
        index = Seen(0.8)
        false = index.seen(signed).sum()
        second = [changed(one, similarity, chance) for one in first]
        found = index.seen(np.stack([signature(" ".join(one), 5) for one in second]))
        print(f"similarity {similarity}: {found.mean():.3f} found, {false} of others")


def speeds(texts: list[str]) -> None:
    for name in STAGES:
        [stage] = parse(DataConfig, {"path": "x", "clean": name}).clean
        step, read, start = stage.build(), 0, time.perf_counter()
        for text in texts:
            step.apply([text], Counter())
            step.marks([text])
            read += bytes_in(text)
            if time.perf_counter() - start > SECONDS:
                break
        print(f"{name}: {read / (time.perf_counter() - start) / 1e6:.1f} MB/s")


def many(texts: list[str], megabytes: int, workers: int) -> None:
    size, documents = 0, 0

    def units() -> Iterator[Unit]:
        nonlocal size, documents
        for number in range(10**9):
            for text in texts:
                if size > megabytes * 1e6:
                    return
                new = text if not number else text.replace(" the ", f" q{number} ")
                new = new.replace(" a ", f" z{number} ").replace(" and ", f" v{number} ")
                size, documents = size + bytes_in(new), documents + 1
                yield Unit([new.replace(" of ", f" w{number} ")], "x")

    cleaner, before = Cleaner([NearDuplicates()], Workers(workers)), _peak()
    start = time.perf_counter()
    kept = sum(1 for _ in cleaner.clean(units()))
    taken = time.perf_counter() - start
    print(
        f"near_duplicates, {workers} processes: {size / 1e6:.0f} MB, {documents:,} documents, "
        f"{kept:,} kept, {taken:.1f} s ({size / taken / 1e6:.1f} MB/s), "
        f"{_peak() - before:.0f} MB more memory in this process"
    )


def prepare(texts: list[str], megabytes: int, workers: int) -> None:
    """A tenth of the documents are copies of earlier ones, and a tenth near-copies (0.95)."""
    chance, size = random.Random(0), 0
    words = [word for text in texts for word in text.split()]
    earlier: list[list[str]] = []
    counts = Counter[str]()
    with tempfile.TemporaryDirectory() as temporary:
        path, out = Path(temporary, "text.jsonl"), Path(temporary, "out")
        with path.open("w") as file:
            while size < megabytes * 1e6:
                kind = chance.choices(("new", "copy", "near"), (8, 1, 1))[0] if earlier else "new"
                if kind == "new":
                    start, length = chance.randrange(len(words)), chance.randrange(200, 1500)
                    document = changed(words[start : start + length], 0.3, chance)
                else:
                    document = chance.choice(earlier)
                    document = document if kind == "copy" else changed(document, 0.95, chance)
                if kind == "new" and (len(earlier) < 10_000 or chance.random() < 0.1):
                    earlier.append(document)
                line = json.dumps({"text": " ".join(document)})
                size, counts[kind] = size + len(line), counts[kind] + 1
                file.write(line + "\n")
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "culm", "prepare", path, "--tokenizer", "bytes", "--out", out,
             f"data.workers={workers}", "data.clean=[near_duplicates]"], check=True,
        )  # fmt: skip
        taken = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
    print(
        f"planted: {dict(counts)}\n{size / 1e6:.0f} MB in {taken:.0f} s "
        f"({size / taken / 1e6:.1f} MB/s); the largest process had {peak:.0f} MB"
    )


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    texts = [record["text"] for record in open_source(sys.argv[1])]
    what = sys.argv[2] if sys.argv[2:] else "planted"
    print(json.dumps({"documents": len(texts), "bytes": sum(map(bytes_in, texts))}))
    if what == "planted":
        planted(texts)
    elif what == "speeds":
        speeds(texts)
    else:
        {"many": many, "prepare": prepare}[what](texts, int(sys.argv[3]), int(sys.argv[4]))


if __name__ == "__main__":
    main()
