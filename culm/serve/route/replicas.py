"""Servers of one model, and which of them gets a request."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import httpx2 as httpx

from culm.serve.route.prefixes import Kept

SHARE = 0.5  # of a prompt that must be known, so that a replica is preferred for it
EXCESS = 1.25  # times the mean number of requests that a preferred replica may have
PROBE_SECONDS = 1.0


class Load:
    """What a server does: the beginnings of prompts that it has read, and its open requests.

    name: differs from that of other servers.
    """

    def __init__(self, name: str, blocks: int) -> None:
        self.name, self.kept, self.open = name, Kept(blocks), 0


L = TypeVar("L", bound=Load)


def preferred(servers: Sequence[L], keys: Sequence[bytes], slots: int) -> L:
    """The best server for a prompt. keys: of its blocks.

    The one that has read at least half of the prompt comes first, with more of it before less; else
    the one with the fewest requests, and of equal ones the first by rendezvous hashing, on which
    several routers agree. A server that is preferred for its cache has at most 1.25 times the mean
    number of requests (consistent hashing with bounded loads, arXiv:1608.01350), or fewer than
    `slots`, which cost the others nothing.
    """
    mean = (sum(one.open for one in servers) + 1) / len(servers)
    limit = max(slots, math.ceil(EXCESS * mean))
    first = keys[0] if keys else b""

    def worth(one: L) -> tuple[int, int, bytes]:
        known = one.kept.match(keys)
        worth_it = known >= SHARE * len(keys) and one.open < limit
        by_hash = hashlib.sha256(first + one.name.encode()).digest()
        return known if worth_it else 0, -one.open, by_hash

    return max(servers, key=worth)


class Replica(Load):
    """A server at a URL. open: requests that wait for it. up: whether it was reached lately."""

    def __init__(self, url: str, blocks: int) -> None:
        self.url = url.rstrip("/")
        super().__init__(self.url, blocks)
        self.up = True
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
    """Chooses a replica for each prompt (`preferred`) among those that can be reached."""

    def __init__(self, urls: Sequence[str], slots: int, blocks: int) -> None:
        self.all = [Replica(url, blocks) for url in urls]
        self._slots = slots

    def choose(self, keys: Sequence[bytes], tried: Collection[Replica]) -> Replica | None:
        """The best one that was not tried; None: all were. keys: of the prompt's blocks."""
        left = [one for one in self.all if one not in tried]
        up = [one for one in left if one.up] or left
        return preferred(up, keys, self._slots) if up else None
