"""How fast batches come from local shards: tokens per second of one process, for each packing.

    python bench/loader.py [--tokens 20000000] [--context 2048]

Documents have the lengths of a geometric distribution with a mean of 500 tokens. A process whose
model reads R tokens per second waits the share R / (tokens per second) of its time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from culm.data.format.document import DocumentFormat
from culm.data.loader import Loader
from culm.data.prepare import prepare
from culm.data.prepared import Prepared
from culm.malloc import keep_freed_memory
from culm.tokenizer.bytes import Bytes

MEAN = 500
RATE = 60_000  # tokens per second of a model of 1B parameters on one H200


class Documents:
    """So many tokens of text, in documents of unequal length."""

    name, left_out, files = "random bytes", types.MappingProxyType({}), ()

    def __init__(self, tokens: int) -> None:
        self.size = tokens

    def __iter__(self) -> Iterator[dict[str, str]]:
        chance, left = np.random.default_rng(0), self.size
        while left > 0:
            length = min(int(chance.geometric(1 / MEAN)), left)
            yield {"text": bytes(chance.integers(97, 123, length, dtype=np.uint8)).decode()}
            left -= length


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=20_000_000)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=64, help="of a micro-batch")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as a run does
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Bytes(specials=True).build()
        prepare(
            Documents(given.tokens), DocumentFormat(), tokenizer, Path(folder) / "corpus", 0,
            duplicates="keep",
        )  # fmt: skip
        corpus = Prepared.open(Path(folder) / "corpus")
        for packing in ("wrapped", "best_fit"):
            began = time.perf_counter()
            loader = Loader(corpus, given.context, given.rows, given.rows, 0, packing=packing)
            ready = time.perf_counter() - began
            steps = given.tokens // (given.context * given.rows)
            loader.step(0)
            began, read = time.perf_counter(), 0.0
            for number in range(1, steps):
                read += sum(batch.counts["tokens"] for batch in loader.step(number))
            rate = read / (time.perf_counter() - began)
            print(
                f"{packing:<9} {rate / 1e6:7.1f}M tokens/s, ready after {ready:.2f} s; a model of "
                f"{RATE:,} tokens/s waits {100 * RATE / rate:.3f} % of its time"
            )


if __name__ == "__main__":
    main()
