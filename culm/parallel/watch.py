"""A rank that stands still is named and ends the job: its process is stopped, or its machine gone.

torch notices after half an hour, where the writer is waited for after a day, and names no rank.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch.distributed as distributed

from culm.exits import LOST_RANK, RESUMES

BEAT = 2.0  # seconds between two signs of life
SILENCE = 60.0  # seconds without one, after which a rank is given up
TICK = 0.5
PACKAGE = Path(__file__).parents[1]


@contextmanager
def watched(store: distributed.Store, rank: int, ranks: int) -> Iterator[None]:
    """Give signs of life, and end this process once another rank gives none.

    The main thread may be in a call to C++ that never returns, so no exception could end it.
    store: of this alone, since a store answers one call at a time.
    """
    watch = Watch(store, rank, ranks)
    threads = [threading.Thread(target=work, daemon=True) for work in (watch.exchange, watch.guard)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        watch.ended.set()
        for thread in threads:
            thread.join(timeout=5)


class Watch:
    """The signs of life of ranks: one thread exchanges them, another counts the silence.

    Rank 0 hears all others, and they hear rank 0, which ends with any of them.
    Silence is counted in ticks of this process, so that a job that is suspended and continued as a
    whole goes on.
    """

    def __init__(self, store: distributed.Store, rank: int, ranks: int) -> None:
        self.store, self.rank = store, rank
        self.others = [0] if rank else list(range(1, ranks))
        self.signs = dict.fromkeys(self.others, "")
        self.ticks = dict.fromkeys(self.others, 0)
        self.worker = threading.get_ident()
        self.ended = threading.Event()

    def exchange(self) -> None:
        """Write the own sign and read those of the others, until the run ends."""
        count = 0
        while not self.ended.wait(BEAT):
            count += 1
            with suppress(RuntimeError):  # the store does not answer, so nothing is heard
                self.store.set(f"alive/{self.rank}", f"{count} {_place(self.worker)}")
                for other in self.others:
                    self._hear(other)

    def _hear(self, other: int) -> None:
        if not self.store.check([f"alive/{other}"]):
            return
        sign = self.store.get(f"alive/{other}").decode()
        if sign != self.signs[other]:
            self.signs[other], self.ticks[other] = sign, 0

    def guard(self) -> None:
        """End this process when a rank has been silent for too long."""
        while not self.ended.wait(TICK):
            for other in self.others:
                self.ticks[other] += 1
            if silent := [r for r in self.others if self.ticks[r] * TICK > SILENCE]:
                if self.rank <= 1:  # one rank says it
                    _say(f"culm: {self._sentence(silent)}\n")
                os._exit(LOST_RANK)

    def _sentence(self, silent: list[int]) -> str:
        found = [(rank, self.signs[rank].partition(" ")[2]) for rank in silent]
        names = ", ".join(
            f"{rank} ({f'last seen {place}' if place else 'never seen'})" for rank, place in found
        )
        return (
            f"no sign of life for {SILENCE:.0f} seconds from rank {names}: its process is stopped "
            f"or its machine cannot be reached; {RESUMES}"
        )


def _place(thread: int) -> str:
    """Where this thread is, in Culm if it is anywhere there."""
    innermost = frame = sys._current_frames()[thread]
    while not Path(frame.f_code.co_filename).is_relative_to(PACKAGE):
        if frame.f_back is None:
            frame = innermost
            break
        frame = frame.f_back
    path = Path(frame.f_code.co_filename)
    where = path.relative_to(PACKAGE.parent) if path.is_relative_to(PACKAGE) else path.name
    return f"in {frame.f_code.co_name}, {where} line {frame.f_lineno}"


def _say(text: str) -> None:
    """Past the streams of Python, whose locks the main thread may hold."""
    with suppress(OSError):
        os.write(2, text.encode())
