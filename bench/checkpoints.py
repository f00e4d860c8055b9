"""What checkpoints cost a run: seconds that each one takes from the steps, by form, in the
foreground and in the background, on this disk and on one that is slow to flush.

    python bench/checkpoints.py --slow 0.5
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from culm.batch import Batch, counts_of
from culm.model.attention.gqa import GQA
from culm.model.transformer import TransformerConfig
from culm.objective.next_token import NextToken
from culm.optim.adamw import AdamW
from culm.train.checkpoint.folder import Progress
from culm.train.checkpoint.settings import CheckpointConfig
from culm.train.checkpoint.store import CheckpointStore

STEPS, EVERY, ROWS, LENGTH, VOCABULARY = 12, 4, 4, 64, 512


@contextmanager
def slow_disk(seconds: float) -> Iterator[None]:
    """Every flush to the disk takes so long; it sleeps, as a process does that waits for a disk."""
    fsync: Callable[[Any], None] = os.fsync

    def slowly(file: Any) -> None:
        time.sleep(seconds)
        fsync(file)

    os.fsync = slowly
    try:
        yield
    finally:
        os.fsync = fsync


def measure(settings: CheckpointConfig | None, slow: float) -> tuple[float, float, int]:
    """Mean and largest seconds of a step with what it saves, without the first; and how many
    checkpoints came onto the disk.
    """
    config = TransformerConfig(
        vocabulary=VOCABULARY, width=256, layers=6, context=LENGTH, attention=(GQA(heads=4),)
    )
    objective = NextToken().build(config.build(0), None, 0)  # type: ignore[arg-type]
    optimizer = AdamW(rate=1e-3).build(objective)
    tokens = torch.randint(VOCABULARY, (ROWS, LENGTH))
    positions = torch.arange(LENGTH).expand_as(tokens)
    batch = Batch(tokens, tokens, positions, counts=counts_of(tokens))
    times, saved = [], []
    with tempfile.TemporaryDirectory() as folder, slow_disk(slow):
        store = CheckpointStore(Path(folder), objective, optimizer, settings or CheckpointConfig())
        for step in range(1, STEPS + 1):
            began = time.perf_counter()
            objective(batch).mean(batch.counts).backward()
            optimizer.step()
            optimizer.zero_grad()
            free = store.poll()
            if settings is not None and step % EVERY == 0 and free:
                store.save(Progress(step, 0, "x"), {}, saved.append)
            times.append(time.perf_counter() - began)
        store.wait()
    return sum(times[1:]) / (STEPS - 1), max(times[1:]), len(saved)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--slow", type=float, default=0.5, help="seconds of a flush of the slow disk"
    )
    slow = parser.parse_args().slow
    print("| disk | checkpoints | written | seconds a step | slowest step |")
    print("|---|---|---|---|---|", flush=True)
    for seconds in (0.0, slow):
        cases: list[tuple[str, CheckpointConfig | None]] = [("none", None)]
        for form in ("whole", "sharded"):
            for asynchronous in (False, True):
                name = f"{form}, {'background' if asynchronous else 'foreground'}"
                values = {"form": form, "asynchronous": asynchronous}
                cases.append((name, CheckpointConfig.model_validate(values)))
        for name, settings in cases:
            mean, most, saved = measure(settings, seconds)
            disk = f"{seconds:g} s a flush" if seconds else "this one"
            print(f"| {disk} | {name} | {saved} | {mean:.3f} | {most:.3f} |", flush=True)


if __name__ == "__main__":
    main()
