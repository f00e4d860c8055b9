"""Requests that wait for a slot, and which of them is next.

1. the highest priority
2. a request that had to give up its slot, in the order of arrival
3. the client that was served the fewest tokens, of prompts and of answers alike
4. the order of arrival

So clients with equal priorities get equal shares, however many requests they send (a virtual token
counter, arXiv 2401.00588). A client that comes back starts at the count of the least served client
that waits: it gets no share for the time in which it asked for nothing.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from culm.engine.request import Running

KNOWN_CLIENTS = 1024  # whose counts are kept while they ask for nothing


@dataclass
class _Class:
    """Rows of one priority. returned: those that had a slot."""

    returned: list[Running] = field(default_factory=list)
    clients: dict[str, deque[Running]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Running]:
        yield from self.returned
        for rows in self.clients.values():
            yield from rows


class Queue:
    """Rows that wait. The engine reports the tokens of answers by `serve`."""

    def __init__(self) -> None:
        self._classes: dict[int, _Class] = {}
        self._waiting: Counter[str] = Counter()  # rows of each client, without returned ones
        self._served: dict[str, int] = {}  # tokens of each client
        self._last = ""  # client of the newest row that was taken
        self.size = 0  # rows that wait; another thread may read it
        self.returned = 0  # rows that were given back, since the start

    def __iter__(self) -> Iterator[Running]:
        """The highest priority first; no order within one."""
        for priority in sorted(self._classes, reverse=True):
            yield from self._classes[priority]

    def __bool__(self) -> bool:
        return bool(self._classes)

    def add(self, row: Running) -> None:
        """A new request waits."""
        client = row.request.client
        if not self._waiting[client]:
            level = min((self._served[c] for c in +self._waiting), default=None)
            level = self._served.get(self._last, 0) if level is None else level
            self._served[client] = max(self._served.get(client, 0), level)
            if len(self._served) > KNOWN_CLIENTS:
                self._served = {
                    c: count for c, count in self._served.items()
                    if count > level or self._waiting[c] or c == client
                }  # fmt: skip
        self._waiting[client] += 1
        self.size += 1
        self._class(row).clients.setdefault(client, deque()).append(row)

    def give_back(self, row: Running) -> None:
        """A row that had a slot waits for another one."""
        self.returned += 1
        self.size += 1
        insort(self._class(row).returned, row, key=lambda each: each.id)

    def peek(self, like: Running | None = None) -> Running:
        """The next row; there must be one.

        like: its client's next row comes first if both have the same prompt and no other has a
        higher priority, because they are read as one.
        """
        priority = max(self._classes)
        rows = self._classes[priority]
        if like is not None and like.request.priority == priority:
            equal = rows.clients.get(like.request.client)
            if equal and equal[0].source == like.source:
                return equal[0]
        if rows.returned:
            return rows.returned[0]
        return min(
            (own[0] for own in rows.clients.values()),
            key=lambda row: (self._served[row.request.client], row.id),
        )

    def take(self, like: Running | None = None) -> Running:
        """`peek`, and the row waits no longer; its client is served its prompt."""
        row = self.peek(like)
        if self._drop(row):
            self._last = row.request.client
            self.serve(self._last, row.length)
        return row

    def serve(self, client: str, tokens: int) -> None:
        """A client has received this many tokens."""
        self._served[client] = self._served.get(client, 0) + tokens

    def remove(self, number: int) -> None:
        """The request of this number waits no longer, if it did."""
        for row in self:
            if row.id == number:
                self._drop(row)
                return

    def above(self, priority: int) -> int:
        """Number of rows with a higher priority."""
        return sum(sum(1 for _ in rows) for own, rows in self._classes.items() if own > priority)

    def slot_to_take(self, running: Sequence[Running], slots: int) -> int | None:
        """Where the row runs that must leave its slot, of `slots` slots.

        It has the lowest priority, and of those with an equal one it came last. None: enough slots
        are free for the rows that wait with a higher one.
        """
        if not running or not self:
            return None
        places = range(len(running))
        slot = min(places, key=lambda at: (running[at].request.priority, -running[at].id))
        free = slots - len(running)
        return slot if self.above(running[slot].request.priority) > free else None

    def clear(self) -> None:
        """Nothing waits, and nobody was served."""
        self._classes.clear()
        self._waiting.clear()
        self._served.clear()
        self.size = 0

    def _class(self, row: Running) -> _Class:
        return self._classes.setdefault(row.request.priority, _Class())

    def _drop(self, row: Running) -> bool:
        """Remove a row; whether it has had no slot yet."""
        priority, client = row.request.priority, row.request.client
        rows = self._classes[priority]
        new = row not in rows.returned
        self.size -= 1
        if new:
            own = rows.clients[client]
            own.remove(row)
            self._waiting[client] -= 1
            if not own:
                del rows.clients[client]
        else:
            rows.returned.remove(row)
        if not rows.returned and not rows.clients:
            del self._classes[priority]
        return new
