"""Drafts from the text itself change how many steps a text takes, and nothing of the text."""

from dataclasses import replace

import pytest
import torch
from every_sampling import kinds_and_samplings
from tiny_models import tiny_model

from culm.config import SettingError
from culm.engine.engine import Engine
from culm.engine.ngram import SIZE, NgramIndex
from culm.engine.request import Request
from culm.engine.sampling import Sampling
from culm.model.attention.deltanet import DeltaNet
from culm.model.attention.gqa import GQA
from culm.model.attention.mla import MLA
from culm.model.mlp.gated import SwiGLU
from culm.model.mlp.moe import MoE
from culm.model.transformer import Transformer

WORDS = 5  # so few that sequences repeat, and what follows them differs
KINDS = {
    "plain": {},
    "latents": {"attention": MLA(heads=2, rank=8, head_dim=16, rope_dim=8)},
    "windows": {"attention": [GQA(heads=2), GQA(heads=2, window=5, sink_tokens=1)]},
    "experts": {"mlp": [SwiGLU(), MoE(experts=4, hidden=16, shared=1)]},
}
SAMPLINGS = [
    Sampling(temperature=0),
    Sampling(seed=5),
    Sampling(temperature=0.7, top_p=0.9, seed=8),
    Sampling(1.3, top_k=4, repetition_penalty=1.1, frequency_penalty=0.1, bias=((4, 1.0),), seed=1),
]


def built(**more) -> Transformer:
    return tiny_model(4, **{"vocabulary": WORDS, **more})


def requests(sampling: Sampling, stop: frozenset[int] = frozenset()) -> list[Request]:
    generator = torch.Generator().manual_seed(1)
    lengths = [1, 2, 3, 5, 17, 40]
    rows = [tuple(torch.randint(0, WORDS, (n,), generator=generator).tolist()) for n in lengths]
    return [
        Request(prompt, 12 + 5 * i, replace(sampling, seed=100 + i), stop)
        for i, prompt in enumerate((*rows, rows[4]))
    ]


class Count:
    """Drafted tokens of an engine, and tokens that steps gave beyond one of each row."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.drafted, self.accepted = engine, 0, 0

    def step(self):
        decoding = not self.engine.waiting or len(self.engine.running) == self.engine.slots
        rows = len(self.engine.running)
        self.drafted += sum(len(row.draft) for row in self.engine.running) if decoding else 0
        events = self.engine.step()
        self.accepted += len(events) - rows if decoding else 0
        return events


@pytest.mark.parametrize(("kind", "sampling"), kinds_and_samplings(KINDS, SAMPLINGS))
def test_tokens_are_those_of_plain_decoding(kind: str, sampling: Sampling) -> None:
    model, wanted = built(**KINDS[kind]), requests(sampling, frozenset({0}))
    wanted += [replace(request, stop=frozenset()) for request in wanted]
    for slots in (9, 3, 1):
        plain = Engine(model, slots).generate(wanted)
        ahead = Engine(model, slots, speculate="ngram").generate(wanted)
        for one, two in zip(plain, ahead, strict=True):
            assert (two.tokens, two.finish) == (one.tokens, one.finish)
            assert two.logprobs == pytest.approx(one.logprobs, abs=1e-4)


@pytest.mark.parametrize("sampling", SAMPLINGS[:2], ids=["greedy", "plain"])
def test_some_drafts_are_accepted_and_some_are_not(sampling: Sampling) -> None:
    """So the test above covers both."""
    engine = Engine(built(), 3, speculate="ngram")
    for request in requests(sampling):
        engine.add(request)
    count = Count(engine)
    while engine.busy:
        count.step()
    assert 0 < count.accepted < count.drafted


def test_a_text_that_repeats_itself_takes_few_steps() -> None:
    """One draft token after another is accepted: SIZE + 1 tokens a step, but for the first."""
    model = built()
    period = Request((1, 2, 3), 60, Sampling(temperature=0, bias=((0, 100.0),)))  # 0 0 0 ...
    slow, fast = [], []
    plain = Engine(model, 1).generate([period], slow.append)
    ahead = Engine(model, 1, speculate="ngram").generate([period], fast.append)
    assert ahead[0].tokens == plain[0].tokens == (0,) * 60
    assert len(slow) == 60
    assert len(fast) <= 4 + 60 // (SIZE + 1) + 1


def test_a_prompt_that_is_copied_takes_few_steps() -> None:
    """What follows is in the prompt: an answer quotes it."""
    index = NgramIndex()
    index.extend([7, 8, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert index.continuation(4) == [1, 2, 3, 4]
    index.extend([1])
    assert index.continuation(3) == [2, 3, 4]
    index.extend([99])
    assert index.continuation(3) == []
    index.extend([5, 6, 5, 6])
    assert index.continuation(5) == [5, 6, 5, 6, 5]  # beyond its end


def test_the_longest_match_and_then_the_latest_decides() -> None:
    index = NgramIndex()
    index.extend([1, 2, 3, 50, 9, 2, 3, 60, 1, 2, 3])
    assert index.continuation(1) == [50]  # 1 2 3 is longer than 2 3
    index.extend([70, 2, 3])
    assert index.continuation(1) == [70]


@pytest.mark.parametrize("cache", ["int8", "int4"])
def test_rounded_keys_and_values(cache) -> None:
    """Greedy, with clear choices: rounding again changes no token of this text."""
    model = built()
    one = Request((1, 2, 3), 60, Sampling(temperature=0, bias=((0, 3.0),)))
    plain = Engine(model, 1, cache=cache).generate([one])[0]
    assert (
        Engine(model, 1, cache=cache, speculate="ngram").generate([one])[0].tokens == plain.tokens
    )


def test_abort_and_join_between_drafts() -> None:
    model = built()
    wanted = requests(SAMPLINGS[1])
    engine = Engine(model, 3, speculate="ngram")
    numbers: list[int] = []
    received: dict[int, list[int]] = {}
    for step in range(200):
        if step % 4 == 0 and len(numbers) < len(wanted):
            numbers.append(engine.add(wanted[len(numbers)]))
            received[numbers[-1]] = []
        if step == 9:
            engine.abort(numbers[0])
        for event in engine.step():
            received[event.request].append(event.token)
    assert not engine.busy
    for number, request in list(zip(numbers, wanted, strict=True))[1:]:
        assert tuple(received[number]) == Engine(model).generate([request])[0].tokens


@pytest.mark.parametrize("length", [3, 4, 6, 96])
def test_slots_that_are_hardly_longer_than_the_drafts(length: int) -> None:
    model, one = built(), Request((1,), length - 1, Sampling(temperature=0, bias=((0, 5.0),)))
    plain, ahead = (
        Engine(model, 1, length, speculate=speculate).generate([one])[0]
        for speculate in (None, "ngram")
    )
    assert ahead.tokens == plain.tokens


def test_what_cannot_draft_is_refused() -> None:
    with pytest.raises(SettingError, match=r"speculate: a layer of this model keeps a state"):
        Engine(built(attention=[DeltaNet(heads=2), GQA(heads=2)]), speculate="ngram")
    with pytest.raises(SettingError, match=r"speculate: 'magic' is not one of mtp, ngram"):
        Engine(built(), speculate="magic")
