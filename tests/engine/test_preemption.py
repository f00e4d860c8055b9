"""A request that loses its slot to one of a higher priority goes on as if nothing had happened."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from every_sampling import kinds_and_samplings
from tiny_models import tiny_model

from culm.engine.constraint import OneOf
from culm.engine.engine import Engine
from culm.engine.prefix import BLOCK
from culm.engine.request import Event, Request
from culm.engine.sampling import Sampling
from culm.model.attention.deltanet import DeltaNet
from culm.model.attention.gqa import GQA
from culm.model.attention.mla import MLA
from culm.model.mtp import MTP
from culm.model.transformer import Transformer

WORDS = 61
KINDS = {
    "plain": {"attention": GQA(heads=4, kv_heads=2, qk_norm="head")},
    "windows": {"attention": [GQA(heads=2, window=9, sink_tokens=2), GQA(heads=2)]},
    "latents": {"attention": MLA(heads=2, rank=8, head_dim=16, rope_dim=8)},
    "states": {"attention": [DeltaNet(heads=2), GQA(heads=2)]},
}
SAMPLINGS = [
    Sampling(temperature=0),
    Sampling(seed=5),
    Sampling(temperature=0.7, top_p=0.9, seed=8),
    Sampling(1.3, top_k=7, repetition_penalty=1.3, frequency_penalty=0.5, seed=1),
]


def built(**more) -> Transformer:
    return tiny_model(6, **{"context": 192, **more})


def prompt(length: int, seed: int) -> tuple[int, ...]:
    chance = random.Random(seed)
    return tuple(chance.randrange(2, WORDS) for _ in range(length))


def requests(sampling: Sampling) -> list[Request]:
    """Long answers of low priority, then short ones of higher priorities; two start alike."""
    lengths = [(3, 40, 0), (70, 30, 0), (20, 40, 1), (20, 12, 2), (66, 9, 1), (5, 12, 3)]
    return [
        Request(
            prompt(length, length), tokens, replace(sampling, seed=number), frozenset({0}),
            priority=priority, logprobs=0,
        )
        for number, (length, tokens, priority) in enumerate(lengths)
    ]  # fmt: skip


class Played:
    """Requests that come one after another, while others run. interrupted: how often one waited
    again for a slot. order: of the requests that ended."""

    def __init__(self, engine: Engine, wanted: Sequence[Request], every: int = 3) -> None:
        self.events: dict[int, list[Event]] = {}
        self.interrupted, self.order = 0, []
        give_back = engine.waiting.give_back

        def counted(row) -> None:
            self.interrupted += 1
            assert not row.draft
            give_back(row)

        engine.waiting.give_back = counted  # type: ignore[method-assign]
        left = list(wanted)
        for step in range(5000):
            if left and step % every == 0:
                self.events[engine.add(left.pop(0))] = []
            for event in engine.step():
                self.events[event.request].append(event)
                if event.finish:
                    self.order.append(event.request)
            if not left and not engine.busy:
                break
        assert not engine.busy

    @property
    def tokens(self) -> list[tuple[int, ...]]:
        return [tuple(event.token for event in events) for events in self.events.values()]


def same(played: Played, model: Transformer, wanted: Sequence[Request]) -> None:
    alone = Engine(model, 1)
    whole = [alone.generate([one])[0] for one in wanted]
    assert played.tokens == [completion.tokens for completion in whole]
    for events, completion in zip(played.events.values(), whole, strict=True):
        assert [e.logprob for e in events] == pytest.approx(completion.logprobs, abs=1e-4)
        assert [e.finish for e in events[:-1]] == [None] * (len(events) - 1)
        assert events[-1].finish == completion.finish


@pytest.mark.parametrize(("kind", "sampling"), kinds_and_samplings(KINDS, SAMPLINGS))
def test_answers_are_those_of_requests_that_were_not_interrupted(
    kind: str, sampling: Sampling
) -> None:
    model, wanted = built(**KINDS[kind]), requests(sampling)
    for step_tokens, prefix_tokens in ((None, 0), (32, 512)):
        engine = Engine(model, 2, step_tokens=step_tokens, prefix_tokens=prefix_tokens)
        played = Played(engine, wanted)
        assert played.interrupted
        same(played, model, wanted)


@pytest.mark.parametrize("speculate", ["mtp", "ngram"])
@pytest.mark.parametrize("step_tokens", [None, 16])
def test_with_drafts(speculate, step_tokens) -> None:
    model, wanted = built(mtp=MTP(depth=2)), requests(SAMPLINGS[2])
    engine = Engine(model, 2, speculate=speculate, step_tokens=step_tokens, prefix_tokens=256)
    played = Played(engine, wanted, every=2)
    assert played.interrupted
    same(played, model, wanted)


@pytest.mark.parametrize("speculate", [None, "ngram"])
def test_with_constraints(speculate) -> None:
    """A rule is asked about the whole output, that before the interruption too."""
    model = built()
    answers = OneOf(tuple(prompt(30, n) for n in range(4)))
    wanted = [replace(one, constraint=answers, max_tokens=30) for one in requests(SAMPLINGS[1])]
    played = Played(Engine(model, 2, speculate=speculate), wanted)
    assert played.interrupted >= 3
    assert set(played.tokens) <= set(answers.sequences)
    same(played, model, wanted)


def test_the_newest_of_the_lowest_priority_leaves_and_comes_back_first() -> None:
    model = built()
    engine = Engine(model, 3)
    low = [engine.add(Request((5, n), 40, SAMPLINGS[0])) for n in range(3)]
    engine.step()
    waiting = engine.add(Request((6,), 40, SAMPLINGS[0]))
    high = [engine.add(Request((7, n), 5, SAMPLINGS[0], priority=1)) for n in range(2)]
    engine.step()
    assert sorted(row.id for row in engine.running) == [low[0], *high]
    while len(engine.running) > 1 or high[0] in [row.id for row in engine.running]:
        engine.step()
    engine.step()
    assert [row.id for row in engine.running] == low
    assert [row.id for row in engine.waiting] == [waiting]


def test_equal_priorities_never_interrupt() -> None:
    wanted = [replace(one, priority=3) for one in requests(SAMPLINGS[1])]
    assert Played(Engine(built(), 2), wanted).interrupted == 0


def test_a_prompt_that_is_read_in_parts_gives_way() -> None:
    """One of a higher priority is read first; blocks make up for what was read in vain."""
    model = built()
    long, urgent = (
        Request(prompt(150, 1), 4, SAMPLINGS[0]),
        Request((3, 4), 4, SAMPLINGS[0], priority=1),
    )
    engine = Engine(model, 2, step_tokens=32)
    slow = engine.add(long)
    engine.step()
    quick = engine.add(urgent)
    first = engine.step()
    assert [event.request for event in first] == [quick]
    found = {slow: [], quick: [first[0].token]}
    while engine.busy:
        for event in engine.step():
            found[event.request].append(event.token)
    for number, one in ((slow, long), (quick, urgent)):
        assert tuple(found[number]) == Engine(model).generate([one])[0].tokens


def test_with_a_prefix_cache_an_interruption_costs_less_than_a_block_of_reading() -> None:
    model = built()
    engine = Engine(model, 1, prefix_tokens=512)
    engine.add(Request(prompt(100, 1), 40, SAMPLINGS[0]))
    for _ in range(35):
        engine.step()
    engine.add(Request((3,), 2, SAMPLINGS[0], priority=1))
    while engine.busy:
        engine.step()
    assert engine.runner.tokens_read == 100 + 1 + 7  # 135 tokens, 128 of them in blocks


def test_what_was_read_of_a_prompt_that_gives_way_is_not_read_again() -> None:
    """With blocks; without them, it begins from its start."""
    model, counts = built(), []
    long, urgent = (
        Request(prompt(150, 1), 4, SAMPLINGS[0]),
        Request((3, 4), 4, SAMPLINGS[0], priority=1),
    )
    for prefix_tokens in (0, 512):
        engine = Engine(model, 2, step_tokens=32, prefix_tokens=prefix_tokens)
        slow = engine.add(long)
        while engine.runner.tokens_read < 96:
            assert not engine.step()
        before = engine.runner.tokens_read
        quick = engine.add(urgent)
        found = {slow: [], quick: []}
        while engine.busy:
            for event in engine.step():
                found[event.request].append(event.token)
        for number, one in ((slow, long), (quick, urgent)):
            assert tuple(found[number]) == Engine(model).generate([one])[0].tokens
        counts.append((before, engine.runner.tokens_read - before))
    (read, without), (same_read, kept) = counts
    assert read == same_read < 150
    assert without == 2 + 150
    assert kept == 2 + 150 - read // BLOCK * BLOCK


def test_abort_of_a_request_that_waits_again() -> None:
    model = built()
    engine = Engine(model, 1)
    low = engine.add(Request((5,), 30, SAMPLINGS[0]))
    engine.step()
    engine.add(Request((6,), 3, SAMPLINGS[0], priority=1))
    engine.step()
    assert [row.id for row in engine.waiting] == [low]
    engine.abort(low)
    while engine.busy:
        assert low not in [event.request for event in engine.step()]
