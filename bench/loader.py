"""How fast text becomes tokens, and tokens batches, in one process.

    python bench/loader.py shards [--tokens 20000000] [--context 2048]
    python bench/loader.py text FILE TOKENIZER [--megabytes 8]

shards: tokens per second from local shards, for each packing. Documents have the lengths of a
geometric distribution with a mean of 500 tokens. A process whose model reads R tokens per second
waits the share R / (tokens per second) of its time.
text: MB/s of the encoder alone and of `prepare`, by CPU time, and tokens per second of a stream
with one worker, by the clock.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from culm.data.format.document import DocumentFormat
from culm.data.loader import Loader
from culm.data.prepare import prepare
from culm.data.prepared import Prepared
from culm.data.stream.batches import StreamBatches
from culm.data.stream.process import Reading
from culm.data.stream.settings import StreamConfig
from culm.malloc import keep_freed_memory
from culm.source import open_source
from culm.source.source import Source
from culm.tokenizer.bytes import Bytes
from culm.tokenizer.tokenizer import Tokenizer

MEAN = 500
RATE = 60_000  # tokens per second of a model of 1B parameters on one H200
CONTEXT, ROWS, SECONDS = 2048, 8, 16.0  # of the stream


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


def shards(given: argparse.Namespace, folder: Path) -> None:
    """Tokens per second of the loader."""
    write(Documents(given.tokens), Bytes(specials=True).build(), folder / "corpus")
    corpus = Prepared.open(folder / "corpus")
    for packing in ("wrapped", "best_fit"):
        began = time.perf_counter()
        loader = Loader(corpus, given.context, given.rows, given.rows, 0, packing=packing)
        ready = time.perf_counter() - began
        loader.step(0)
        began, read = time.perf_counter(), 0.0
        for number in range(1, given.tokens // (given.context * given.rows)):
            read += sum(batch.counts["tokens"] for batch in loader.step(number))
        rate = read / (time.perf_counter() - began)
        print(
            f"{packing:<9} {rate / 1e6:7.1f}M tokens/s, ready after {ready:.2f} s; a model of "
            f"{RATE:,} tokens/s waits {100 * RATE / rate:.3f} % of its time"
        )


def text(given: argparse.Namespace, folder: Path) -> None:
    """MB/s of tokenising, and tokens per second of a stream."""
    tokenizer, format = Tokenizer.load(given.tokenizer), DocumentFormat()
    texts, size = [], 0
    for record in open_source(given.file):
        some = list(format.contents(record))
        texts += some
        size += sum(len(one.encode()) for one in some)
        if size >= given.megabytes * 1e6:
            break
    seconds = cpu_seconds(lambda: tokenizer.encode_batch(texts))
    print(f"encode_batch  {size / seconds / 1e6:6.2f} MB/s of CPU time")
    source = open_source(given.file)
    records = Records([{"text": one} for one in texts])
    seconds = cpu_seconds(lambda: write(records, tokenizer, folder / "out"))
    print(f"prepare       {size / seconds / 1e6:6.2f} MB/s of CPU time")
    reading = Reading(source, format, "error", 0, 1000, range(ROWS))
    some = StreamConfig(workers=1)
    stream = StreamBatches(reading, tokenizer, some, CONTEXT, ROWS, ROWS, ())
    stream.step(0)
    # What was read ahead is used up first.
    began, ended, number, read = time.perf_counter(), 0.0, 1, 0
    while (ended := time.perf_counter()) - began < SECONDS:
        stream.step(number)
        number += 1
        read += ROWS * CONTEXT if ended - began > SECONDS / 2 else 0
    rate = read / (SECONDS / 2)
    stream.close()
    print(f"stream        {rate:,.0f} tokens/s of one worker")


def cpu_seconds(work: Callable[[], object]) -> float:
    """Of this process, at the second time."""
    work()
    began = time.process_time()
    work()
    return time.process_time() - began


class Records:
    """Records in memory."""

    name, size, left_out, files = "records", None, types.MappingProxyType({}), ()

    def __init__(self, records: list[dict[str, str]]) -> None:
        self.records = records

    def __iter__(self) -> Iterator[dict[str, str]]:
        return iter(self.records)


def write(source: Source, tokenizer: Tokenizer, out: Path) -> None:
    prepare(source, DocumentFormat(), tokenizer, out, 0, duplicates="keep", overwrite=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    one = kinds.add_parser("shards")
    one.add_argument("--tokens", type=int, default=20_000_000)
    one.add_argument("--context", type=int, default=2048)
    one.add_argument("--rows", type=int, default=64, help="of a micro-batch")
    one.set_defaults(work=shards)
    one = kinds.add_parser("text")
    one.add_argument("file")
    one.add_argument("tokenizer")
    one.add_argument("--megabytes", type=float, default=8)
    one.set_defaults(work=text)
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as a run does
    with tempfile.TemporaryDirectory() as folder:
        given.work(given, Path(folder))


if __name__ == "__main__":
    main()
