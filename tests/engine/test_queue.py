"""Who is served next, against a slow reference that knows the rules and nothing else."""

import random
from collections import Counter
from collections.abc import Callable

import pytest
import torch

from culm.engine import queue
from culm.engine.engine import Engine
from culm.engine.queue import Queue
from culm.engine.request import Request, Running
from culm.model.attention.gqa import GQA
from culm.model.transformer import TransformerConfig

MODEL = TransformerConfig(
    vocabulary=8, width=8, layers=1, context=64, attention=GQA(heads=1)
).build()
NEXT = 3  # the only token that it says here


class Reference:
    """The engine's slots and its queue as lists; every decision sorts all requests."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.waiting: list[int] = []
        self.running: list[int] = []
        self.asked: dict[int, Request] = {}
        self.left: dict[int, int] = {}  # tokens to generate
        self.returned: set[int] = set()
        self.served: Counter[str] = Counter()
        self.last = ""

    def add(self, number: int, request: Request) -> None:
        clients = {self.asked[n].client for n in self.waiting if n not in self.returned}
        if request.client not in clients:
            level = min((self.served[c] for c in clients), default=self.served[self.last])
            self.served[request.client] = max(self.served[request.client], level)
        self.asked[number], self.left[number] = request, request.max_tokens
        self.waiting.append(number)

    def drop(self, number: int) -> None:
        for rows in (self.waiting, self.running):
            if number in rows:
                rows.remove(number)

    def rank(self, number: int) -> tuple:
        one = self.asked[number]
        if number in self.returned:
            return -one.priority, 0, 0, number
        return -one.priority, 1, self.served[one.client], number

    def step(self) -> list[int]:
        """Requests that get a token, in any order."""
        while self.running:
            lowest = min(self.running, key=lambda n: (self.asked[n].priority, -n))
            above = [
                n for n in self.waiting if self.asked[n].priority > self.asked[lowest].priority
            ]
            if len(above) <= self.slots - len(self.running):
                break
            self.drop(lowest)
            self.waiting.append(lowest)
            self.returned.add(lowest)
        started = []
        while self.waiting and len(self.running) + len(started) < self.slots:
            first = min(self.waiting, key=self.rank)
            self.drop(first)
            if first not in self.returned:
                self.last = self.asked[first].client
                self.served[self.last] += len(self.asked[first].prompt)
            self.returned.discard(first)
            started.append(first)
        advanced = started or list(self.running)
        self.running += started
        for number in advanced:
            self.left[number] -= 1
            self.served[self.asked[number].client] += 1
            if not self.left[number]:
                self.drop(number)
        return advanced


def quick(slots: int) -> Engine:
    """An engine whose model computes nothing: what it decides is what takes time."""
    engine = Engine(MODEL, slots, fused=False)
    says = torch.zeros(8)
    says[NEXT] = 50.0
    engine.runner.prefill = lambda rows, first: says.repeat(len(rows), 1)  # type: ignore
    engine.runner.decode = lambda rows, slots: (says.repeat(len(rows), 1, 1), None)  # type: ignore
    return engine


def mixed(chance: random.Random) -> Callable[[], Request]:
    """Requests of one mix: few or many clients and priorities, short or long."""
    clients = "abcdefgh"[: chance.choice((1, 2, 3, 8))]
    priorities = range(chance.choice((1, 1, 2, 4)))
    longest = chance.choice((1, 4, 12))

    def request() -> Request:
        return Request(
            (1,) * chance.randint(1, longest), chance.randint(1, longest),
            client=chance.choice(clients), priority=chance.choice(priorities),
        )  # fmt: skip

    return request


@pytest.mark.parametrize("part", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_random_mixes_are_served_as_the_rules_say(part: int) -> None:
    """Thousands of arrivals and ends in any order; nothing starves, and every slot comes back."""
    for mix in range(1000 if part else 250):
        chance = random.Random(10_000 * part + mix)
        slots, request = chance.randint(1, 5), mixed(chance)
        engine, slow, left = quick(slots), Reference(slots), chance.randint(1, 25)
        live: set[int] = set()
        steps = 0
        while live or left:
            for _ in range(min(left, chance.choice((0, 0, 1, 3)))):
                left -= 1
                one = request()
                number = engine.add(one)
                slow.add(number, one)
                live.add(number)
            if live and chance.random() < 0.1:
                ended = chance.choice(sorted(live))
                live.remove(ended)
                engine.abort(ended)
                slow.drop(ended)
            events = engine.step()
            assert sorted(event.request for event in events) == sorted(slow.step())
            live -= {event.request for event in events if event.finish}
            assert len(engine.running) <= slots
            assert engine.waiting.size == len(list(engine.waiting))
            steps += 1
            assert steps < 2000
        assert not engine.busy
        assert not list(engine.waiting)


def row(number: int, client: str, length: int = 1, priority: int = 0) -> Running:
    return Running(number, Request((1,) * length, client=client, priority=priority), 0)


def test_clients_get_equal_shares_whatever_they_send() -> None:
    """One sends hundreds of long prompts, one short ones, one comes late."""
    waiting, numbers = Queue(), iter(range(10_000))
    for _ in range(400):
        waiting.add(row(next(numbers), "many", 10))
        waiting.add(row(next(numbers), "few", 2))
    got: Counter[str] = Counter()
    for turn in range(150):
        if turn == 60:
            before = got.copy()
            for _ in range(100):
                waiting.add(row(next(numbers), "late", 5))
        taken = waiting.take()
        got[taken.request.client] += taken.length
    assert abs(got["many"] - got["few"]) <= 10
    shares = [got[client] - before[client] for client in ("many", "few", "late")]
    assert max(shares) - min(shares) <= 20
    assert shares[2] > 100


def test_a_client_that_comes_back_has_no_share_for_its_absence() -> None:
    waiting = Queue()
    waiting.add(row(0, "gone"))
    waiting.take()
    for number in range(1, 200):
        waiting.add(row(number, "here", 10))
        if number > 2:
            waiting.take()
    for number in range(200, 230):
        waiting.add(row(number, "gone", 10))
    clients = [waiting.take().request.client for _ in range(4)]
    assert clients.count("here") == 2


def test_counts_of_clients_that_are_gone_are_not_kept(monkeypatch) -> None:
    monkeypatch.setattr(queue, "KNOWN_CLIENTS", 20)
    waiting = Queue()
    for number in range(500):
        waiting.add(row(number, f"client {number}"))
        waiting.take()
    assert len(waiting._served) < 30


def test_choices_of_one_prompt_follow_each_other() -> None:
    """They are read as one, although their client has had its share; but not across priorities."""
    waiting = Queue()
    for number, (client, length) in enumerate([("a", 5), ("a", 5), ("b", 3), ("a", 6)]):
        waiting.add(row(number, client, length))
    first = waiting.take()
    assert (first.id, waiting.peek().id, waiting.peek(first).id) == (0, 2, 1)
    second = waiting.take(first)
    assert waiting.peek(second).id == 2
    waiting.add(row(4, "a", 5, priority=1))
    assert waiting.peek(second).id == 4
    waiting.remove(4)
    waiting.remove(99)
    assert [one.id for one in waiting] == [3, 2]
