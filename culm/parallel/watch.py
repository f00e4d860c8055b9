"""A rank that stands still is named and ends the job: its process is stopped, its machine is gone,
or its main thread hangs.

torch notices after half an hour, where the writer is waited for after a day, and names no rank.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch.distributed as distributed

from culm.exits import LOST_RANK, RESUMES
from culm.log import say_at_once
from culm.parallel.pulse import Pulse

BEAT = 2.0  # seconds between two signs of life
SILENCE = 60.0  # seconds without one, or without a new phase, after which a rank is given up
TICK = 0.5
SLOWER = 10  # times the longest phase: one that takes longer hangs
UNUSUAL = 1  # steps in which a process starts up: their phases say nothing of later ones
PACKAGE = Path(__file__).parents[1]
HANGS = "hangs"  # the key under which rank 0 names the ranks that hang


@dataclass(frozen=True)
class Sign:
    """What a rank says of itself. count: of signs. place: of its pulse. still: seconds in one phase
    of a step; limit: how many it may have. where: a line of code.
    """

    count: int
    place: tuple[int, int]
    still: float
    limit: float
    where: str

    @classmethod
    def read(cls, text: str) -> Sign:
        """From JSON."""
        given = json.loads(text)
        return cls(**given | {"place": tuple(given["place"])})


@contextmanager
def watched(store: distributed.Store, rank: int, ranks: int, pulse: Pulse) -> Iterator[None]:
    """Give signs of life, and end this process once a rank gives none or hangs.

    The main thread may be in a call to C++ that never returns, so no exception could end it.
    store: of this alone, since a store answers one call at a time. pulse: of the main thread.
    """
    watch = Watch(store, rank, ranks, pulse)
    threads = [threading.Thread(target=work, daemon=True) for work in (watch.exchange, watch.guard)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        watch.ended.set()
        for thread in threads:
            thread.join(timeout=5)


class Stillness:
    """How long a pulse has stood still where it must move, in ticks."""

    def __init__(self, pulse: Pulse) -> None:
        self.pulse, self._place = pulse, pulse.place
        self._ticks = self._longest = 0

    def tick(self) -> None:
        """Look at the pulse."""
        place = self.pulse.place
        if place == self._place and self.pulse.must_move:
            self._ticks += 1
            return
        if self._place[0] > UNUSUAL:
            self._longest = max(self._longest, self._ticks)
        self._place, self._ticks = place, 0

    @property
    def seconds(self) -> float:
        return self._ticks * TICK if self._place[0] > UNUSUAL + 1 else 0.0

    @property
    def limit(self) -> float:
        """Seconds in one phase after which a rank hangs."""
        return max(SILENCE, SLOWER * self._longest * TICK)


class Watch:
    """The signs of life of ranks: one thread exchanges them, another counts the silence.

    Rank 0 hears all others, and they hear rank 0, which ends with any of them.
    Silence is counted in ticks of this process, so that a job that is suspended and continued as a
    whole goes on.
    """

    def __init__(self, store: distributed.Store, rank: int, ranks: int, pulse: Pulse) -> None:
        self.store, self.rank = store, rank
        self.others = [0] if rank else list(range(1, ranks))
        self.signs: dict[int, Sign] = {}
        self.ticks = dict.fromkeys(self.others, 0)
        self.stillness, self.suspicion = Stillness(pulse), Suspicion()
        self.worker = threading.get_ident()
        self.ended = threading.Event()

    def exchange(self) -> None:
        """Write the heartbeat of this rank and read those of the others, until the run ends."""
        count = 0
        while not self.ended.wait(BEAT):
            count += 1
            with suppress(RuntimeError):  # the store does not answer, so nothing is heard
                own = self._sign(count)
                self.store.set(f"alive/{self.rank}", json.dumps(asdict(own)))
                for other in self.others:
                    self._hear(other)
                if self.rank == 0:
                    self._judge(self.signs | {0: own})
                elif self.store.check([HANGS]):
                    self._end(json.loads(self.store.get(HANGS)))

    def _sign(self, count: int) -> Sign:
        still = self.stillness
        return Sign(count, still.pulse.place, still.seconds, still.limit, _place(self.worker))

    def _hear(self, other: int) -> None:
        if not self.store.check([f"alive/{other}"]):
            return
        sign = Sign.read(self.store.get(f"alive/{other}").decode())
        if other not in self.signs or sign.count != self.signs[other].count:
            self.signs[other], self.ticks[other] = sign, 0

    def _judge(self, signs: dict[int, Sign]) -> None:
        """End the job if the ranks that are behind all others hang: those wait for them."""
        if len(signs) <= len(self.others):
            return
        behind = hanging(signs)
        if not self.suspicion.lasts({rank: signs[rank] for rank in behind}):
            return
        say_at_once(f"culm: {hang_sentence(signs, behind)}")
        self.store.set(HANGS, json.dumps(behind))
        self.ended.wait(2 * BEAT + 1)  # the others read it, perhaps in a store of this process
        self._end(behind)

    def _end(self, hanging: list[int]) -> None:
        """End this process, with its stack if it is one of those that hang."""
        if self.rank in hanging:
            say_at_once(f"culm: the stack of rank {self.rank}:")
            faulthandler.dump_traceback(2)
        os._exit(LOST_RANK)

    def guard(self) -> None:
        """End this process when a rank has been silent for too long."""
        while not self.ended.wait(TICK):
            self.stillness.tick()
            for other in self.others:
                self.ticks[other] += 1
            if silent := [r for r in self.others if self.ticks[r] * TICK > SILENCE]:
                if self.rank <= 1:  # one rank says it
                    say_at_once(f"culm: {self._sentence(silent)}")
                os._exit(LOST_RANK)

    def _sentence(self, silent: list[int]) -> str:
        found = [(rank, self.signs.get(rank)) for rank in silent]
        names = ", ".join(
            f"{rank} ({f'last seen {sign.where}' if sign else 'never seen'})"
            for rank, sign in found
        )
        return (
            f"no sign of life for {SILENCE:.0f} seconds from rank {names}: its process is stopped "
            f"or its machine cannot be reached; {RESUMES}"
        )


class Suspicion:
    """That ranks hang. Their signs are older than that of the rank which reads them, so that they
    may have gone on; the next ones show that they have not.
    """

    def __init__(self) -> None:
        self._first: dict[int, Sign] = {}

    def lasts(self, suspects: dict[int, Sign]) -> bool:
        """Whether the same ranks were suspected at the same place two signs ago."""
        first = self._first
        again = suspects.keys() == first.keys() and all(
            sign.place == first[rank].place for rank, sign in suspects.items()
        )
        if not again:
            self._first = suspects
        return bool(suspects) and all(
            sign.count >= self._first[rank].count + 2 for rank, sign in suspects.items()
        )


def hanging(signs: dict[int, Sign]) -> list[int]:
    """The ranks that hang: those behind all others, if each has been still beyond its limit."""
    place = min(sign.place for sign in signs.values())
    behind = {rank: sign for rank, sign in signs.items() if sign.place == place}
    return sorted(behind) if all(s.still > s.limit for s in behind.values()) else []


def hang_sentence(signs: dict[int, Sign], ranks: list[int]) -> str:
    """Which ranks hang, since when and where."""
    names = ", ".join(f"{rank} ({signs[rank].where})" for rank in ranks)
    seconds = min(signs[rank].still for rank in ranks)
    verb = "hangs" if len(ranks) == 1 else "hang, or one of them does"
    return (
        f"rank {names} {verb}: no new phase of a step for {seconds:.0f} seconds, and the others "
        f"wait; what each does stands below; {RESUMES}"
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
