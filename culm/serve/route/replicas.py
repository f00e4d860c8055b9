"""Servers of one model, and which of them gets a request."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import httpx2 as httpx

from culm.serve.route.prefixes import Kept

SHARE = 0.5  # of a prompt that must be known, so that a replica is preferred for it
EXCESS = 1.25  # times the mean number of requests that a preferred replica may have
PROBE_SECONDS = 1.0


class Replica:
    """One server. open: requests that wait for it. up: whether it could be reached lately."""

    def __init__(self, url: str, blocks: int) -> None:
        self.url = url.rstrip("/")
        self.kept = Kept(blocks)
        self.open, self.up = 0, True
        self._probe: asyncio.Task[None] | None = None

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Count a request while it lasts."""
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1

    def lose(self, client: httpx.AsyncClient) -> None:
        """It cannot be reached: others come first until it is ready again, without its cache."""
        self.up = False
        self.kept.clear()
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._wait(client))

    async def _wait(self, client: httpx.AsyncClient) -> None:
        while not self.up:
            await asyncio.sleep(PROBE_SECONDS)
            self.up = await self.ready(client)

    async def ready(self, client: httpx.AsyncClient) -> bool:
        """Whether it takes requests."""
        try:
            found = await client.get(f"{self.url}/health/ready", timeout=PROBE_SECONDS)
        except httpx.TransportError:
            return False
        return found.status_code == 200

    def close(self) -> None:
        if self._probe is not None:
            self._probe.cancel()


class Replicas:
    """Chooses a replica for each prompt.

    The one that has read at least half of the prompt comes first, with more of it before less; else
    the one with the fewest requests, and of equal ones the first by rendezvous hashing, on which
    several routers agree. A replica that is preferred for its cache has at most 1.25 times the mean
    number of requests (consistent hashing with bounded loads, arXiv:1608.01350), or fewer than
    `slots`, which cost the others nothing.
    """

    def __init__(self, urls: Sequence[str], slots: int, blocks: int) -> None:
        self.all = [Replica(url, blocks) for url in urls]
        self._slots = slots

    def choose(self, keys: Sequence[bytes], tried: Collection[Replica]) -> Replica | None:
        """The best one that was not tried; None: all were. keys: of the prompt's blocks."""
        left = [one for one in self.all if one not in tried]
        if not left:
            return None
        up = [one for one in left if one.up] or left
        mean = (sum(one.open for one in up) + 1) / len(up)
        limit = max(self._slots, math.ceil(EXCESS * mean))

        def worth(one: Replica) -> tuple[int, int, bytes]:
            known = one.kept.match(keys)
            worth_it = known >= SHARE * len(keys) and one.open < limit
            return known if worth_it else 0, -one.open, _rendezvous(keys, one)

        return max(up, key=worth)


def _rendezvous(keys: Sequence[bytes], replica: Replica) -> bytes:
    first = keys[0] if keys else b""
    return hashlib.sha256(first + replica.url.encode()).digest()
