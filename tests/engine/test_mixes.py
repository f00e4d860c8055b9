"""Everything at once against one request at a time: what a request gets depends on nothing else.

Each mix is an engine with random settings and requests with random settings, which come, are
aborted and end in any order. The reference generates each of them alone, without any of it.
"""

import copy
import random
from dataclasses import replace

import pytest
import torch

from culm.adapt.lora import LoRA, adapters_of
from culm.adapt.multi_lora import adapter_names, attach_adapters
from culm.engine import scoring
from culm.engine.constraint import OneOf
from culm.engine.engine import Engine
from culm.engine.request import Event, Request
from culm.engine.sampling import Sampling, TokenSampler
from culm.model.attention.gqa import GQA
from culm.model.mtp import MTP
from culm.model.transformer import Transformer, TransformerConfig

WORDS, CONTEXT = 31, 224
SHARED = [tuple(random.Random(n).randrange(2, WORDS) for _ in range(160)) for n in range(3)]
ANSWERS = OneOf(tuple(tuple(row[:20]) for row in SHARED))


def built(*attention: GQA, adapted: bool = False) -> Transformer:
    torch.set_num_threads(1)
    config = TransformerConfig(
        vocabulary=WORDS, width=16, layers=len(attention), context=CONTEXT, attention=attention,
        tied=False, mtp=MTP(depth=1),
    )  # fmt: skip
    model = config.build(seed=3).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(8)
    if not adapted:
        return model
    other = copy.deepcopy(model)
    LoRA(rank=2).apply(other, 0)
    for layer in adapters_of(other).values():
        torch.nn.init.normal_(layer.b, std=0.3)
    attach_adapters(model, {"first": adapters_of(other)})
    return model


WINDOW = GQA(heads=2, window=7, sink_tokens=1)
MODELS = [built(GQA(heads=2)), built(WINDOW), built(GQA(heads=2), WINDOW, adapted=True)]
DRAFTS = [built(GQA(heads=1)), built(GQA(heads=2, window=9))]


def sampling(chance: random.Random) -> Sampling:
    return chance.choice((
        Sampling(temperature=0),
        Sampling(),
        Sampling(temperature=chance.uniform(0.3, 2), top_p=0.9, min_p=0.01),
        Sampling(top_k=4, typical_p=0.9, repetition_penalty=1.2),
        Sampling(presence_penalty=0.5, frequency_penalty=0.3, bias=((5, 1.5),)),
    ))  # fmt: skip


def request(chance: random.Random, model: Transformer) -> Request:
    adapters = (None, *adapter_names(model))
    shared = chance.choice(SHARED)[: chance.choice((0, 3, 63, 64, 65, 128, 140))]
    own = tuple(chance.randrange(WORDS) for _ in range(chance.randint(not shared, 12)))
    return Request(
        shared + own, chance.choice((1, 2, 5, 9, 16)),
        replace(sampling(chance), seed=chance.randrange(1000)),
        chance.choice((frozenset(), frozenset({0, 1}))), chance.choice((None, 0, 2)),
        chance.choice(adapters), chance.choice((None, None, None, ANSWERS)),
        chance.choice(("", "a")), chance.choice((0, 0, 1, 2)), chance.choice("abc"),
    )  # fmt: skip


def engine(chance: random.Random, model: Transformer) -> Engine:
    draft = chance.choice(DRAFTS)
    return Engine(
        model, chance.randint(1, 5), step_tokens=chance.choice((None, 8, 40, 256)),
        prefix_tokens=chance.choice((0, 64, 256, 4096)),
        speculate=chance.choice((None, None, "mtp", "ngram", draft, model)),
    )  # fmt: skip


def play(chance: random.Random, model: Transformer) -> list[tuple[Request, list[Event], bool]]:
    """Requests of one mix, their events, and whether they were aborted."""
    one = engine(chance, model)
    played: dict[int, tuple[Request, list[Event], bool]] = {}
    left, live = chance.randint(1, 7), set[int]()
    for _ in range(3000):
        for _ in range(min(left, chance.choice((0, 0, 0, 1, 3)))):
            left -= 1
            new = request(chance, model)
            number = one.add(new)
            played[number] = new, [], False
            live.add(number)
        if live and chance.random() < 0.02:
            ended = chance.choice(sorted(live))
            one.abort(ended)
            live.remove(ended)
            played[ended] = (*played[ended][:2], True)
        for event in one.step():
            assert event.request in live
            played[event.request][1].append(event)
            if event.finish:
                live.remove(event.request)
        assert len(one.running) <= one.slots
        if not (left or live):
            break
    assert (left, live) == (0, set())  # nothing starves
    assert not one.busy  # nothing leaks
    assert not list(one.waiting)
    assert len(one.runner.prefix._kept) + len(one.runner.prefix._free) == one.runner.prefix.blocks
    return list(played.values())


def nearly_chosen(asked: Request, output: list[int], model: Transformer) -> set[int]:
    """Tokens that rounding may choose after an output: from logits that differ by about 1e-6.

    In 4,300 mixes there was one such tie: two logits 4e-7 from each other at the end of top-k.
    """
    logits = scoring.logits_of(model, [*asked.prompt, *output], asked.adapter)[-1:]
    rule, generator = asked.constraint, torch.Generator().manual_seed(0)
    sampler = TokenSampler([asked.sampling], [asked.sampling.seed or 0])
    allowed = None if rule is None else [rule.mask(output)]
    noises = (1e-6 * torch.randn(logits.shape, generator=generator) for _ in range(50))
    return {int(sampler(logits + n, [asked.prompt], [output], allowed)[0]) for n in noises}


def check(asked: Request, events: list[Event], aborted: bool, model: Transformer) -> None:
    alone = Engine(model, 1)
    alone.add(replace(asked, priority=0))
    whole: list[Event] = []
    while alone.busy:
        whole += alone.step()
    expected = whole[: len(events)] if aborted else whole
    ours, theirs = ([event.token for event in each] for each in (events, expected))
    if ours != theirs:
        same = next(n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
        assert ours[same] in nearly_chosen(asked, theirs[:same], model)
        events, expected = events[:same], expected[:same]
    for one, two in zip(events, expected, strict=True):
        assert (one.finish, len(one.top)) == (two.finish, len(two.top))
        assert one.logprob == pytest.approx(two.logprob, abs=2e-3)
        for (_, a), (_, b) in zip(one.top, two.top, strict=True):
            assert a == pytest.approx(b, abs=2e-3)


@pytest.mark.parametrize(
    "part", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 43))]
)
def test_random_mixes(part: int) -> None:
    """40 mixes in the fast suite, 10,000 in all."""
    for mix in range(240 if part else 40):
        chance = random.Random(1000 * part + mix)
        model = chance.choice(MODELS)
        for asked, events, aborted in play(chance, model):
            check(asked, events, aborted, model)
