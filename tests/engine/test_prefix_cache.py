"""Prompts that begin like earlier ones are read from there on, and answers do not change."""

import copy
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from every_sampling import kinds_and_samplings
from tiny_models import tiny_model

from culm.adapt.lora import LoRA, adapters_of
from culm.adapt.multi_lora import attach_adapters
from culm.engine.engine import Engine
from culm.engine.prefix import BLOCK, PrefixCache
from culm.engine.request import Completion, Request, Running
from culm.engine.sampling import Sampling
from culm.model.attention.deltanet import DeltaNet
from culm.model.attention.gqa import GQA
from culm.model.attention.mla import MLA
from culm.model.cache import Cache, FullCache
from culm.model.mtp import MTP
from culm.model.transformer import Transformer

WORDS = 61
KINDS = {
    "plain": {"attention": GQA(heads=4, kv_heads=2, qk_norm="head")},
    "windows": {"attention": [GQA(heads=2, window=9, sink_tokens=2), GQA(heads=2)]},
    "latents": {"attention": MLA(heads=2, rank=8, head_dim=16, rope_dim=8)},
    "learned positions": {"attention": GQA(heads=2, rope=None), "learned_positions": True},
}
SAMPLINGS = [
    Sampling(temperature=0),
    Sampling(seed=5),
    Sampling(temperature=0.7, top_p=0.9, seed=8),
    Sampling(1.3, top_k=7, repetition_penalty=1.3, frequency_penalty=0.5, seed=1),
]


def built(**more) -> Transformer:
    return tiny_model(**{"context": 320, **more})


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    chance = random.Random(seed)
    return tuple(chance.randrange(2, WORDS) for _ in range(length))


def requests(sampling: Sampling) -> list[Request]:
    """Prompts that share nothing, some blocks, or everything, in all places of a block."""
    shared, other = prompt(150, 1), prompt(130, 2)
    rows = [
        shared, shared[:128], shared[:129], shared + prompt(30, 3), shared[:64] + prompt(70, 4),
        other, shared, (*other, 7), prompt(5, 5), shared[:100] + prompt(40, 6),
    ]  # fmt: skip
    return [
        Request(row, 6 + n, replace(sampling, seed=n), frozenset({0, 1}))
        for n, row in enumerate(rows)
    ]


def tokens(done: Sequence[Completion]) -> list[tuple[int, ...]]:
    return [completion.tokens for completion in done]


@pytest.mark.parametrize(("kind", "sampling"), kinds_and_samplings(KINDS, SAMPLINGS))
def test_answers_are_those_of_prompts_that_are_read(kind: str, sampling: Sampling) -> None:
    model, wanted = built(**KINDS[kind]), requests(sampling)
    fresh = Engine(model, 4).generate(wanted)
    for slots, step_tokens in ((4, None), (1, None), (3, 50), (4, 16)):
        engine = Engine(model, slots, prefix_tokens=1024, step_tokens=step_tokens)
        for _ in range(2):
            done = engine.generate(wanted)
            assert tokens(done) == tokens(fresh)
            for one, two in zip(done, fresh, strict=True):
                assert one.logprobs == pytest.approx(two.logprobs, abs=1e-4)
        expected = [len(r.prompt) // BLOCK * BLOCK - (len(r.prompt) % BLOCK == 0) for r in wanted]
        assert [c.cached for c in done] == expected


@pytest.mark.parametrize("speculate", ["mtp", "ngram"])
def test_with_drafts(speculate) -> None:
    """Entries of the heads depend on tokens after a block: the same drafts are accepted."""
    model = built(mtp=MTP(depth=2))
    wanted = requests(SAMPLINGS[1])
    fresh = Engine(model, 4, speculate=speculate)
    engine = Engine(model, 4, speculate=speculate, prefix_tokens=2048)
    engine.generate(wanted)
    plain, counts = tokens(Engine(model, 4).generate(wanted)), []
    for one in (fresh, engine):
        steps: list[int] = []
        assert tokens(one.generate(wanted, steps.append)) == plain
        counts.append(steps)
    assert counts[0] == counts[1]


def test_adapters_and_salts_keep_their_own_blocks() -> None:
    model = built()
    other = copy.deepcopy(model)
    LoRA(rank=4).apply(other, 0)
    for layer in adapters_of(other).values():
        torch.nn.init.normal_(layer.b, std=0.3)
    attach_adapters(model, {"first": adapters_of(other), "second": adapters_of(other)})
    long = prompt(200)
    one = Request(long, 8, SAMPLINGS[1])
    wanted = [replace(one, adapter=name) for name in (None, "first")] + [replace(one, salt="key")]
    engine = Engine(model, 3, prefix_tokens=4096)
    fresh = tokens(Engine(model, 3).generate(wanted))
    assert fresh[0] != fresh[1]
    for again in range(2):
        done = engine.generate(wanted)
        assert tokens(done) == fresh
        assert [c.cached for c in done] == [192 * again] * 3
    for stranger in (replace(one, salt="kez"), replace(one, adapter="second", salt="key")):
        assert engine.generate([stranger])[0].cached == 0


def test_equal_prompts_of_other_clients_are_not_read_together() -> None:
    """Else the time to the first token would tell that another client has sent the same."""
    engine = Engine(built(), 4)
    engine.generate([Request(prompt(100), 2, salt=salt) for salt in ("a", "b", "a")])
    assert engine.runner.tokens_read == 200


@pytest.mark.parametrize("step_tokens", [None, 64, 100])
def test_a_shared_prompt_is_read_once(step_tokens) -> None:
    """1,000 tokens before eight questions that come at once, and before a later one."""
    model = built(context=1200)
    shared = prompt(1000)
    wanted = [Request(shared + prompt(10 + n, n), 5, SAMPLINGS[0]) for n in range(8)]
    engine = Engine(model, 8, prefix_tokens=4096, step_tokens=step_tokens)
    done = engine.generate(wanted)
    once, rest = 1010, sum(1000 % BLOCK + 10 + n for n in range(1, 8))
    assert engine.runner.tokens_read == once + rest
    assert [c.cached for c in done] == [0] + [992] * 7
    assert tokens(done) == tokens(Engine(model, 8).generate(wanted))
    engine.generate([replace(wanted[0], prompt=(*shared, 3))])
    assert engine.runner.tokens_read == once + rest + 9


def test_an_answer_is_kept_for_the_next_turn() -> None:
    engine = Engine(built(), 1, prefix_tokens=1024)
    first = engine.generate([Request(prompt(60), 80, SAMPLINGS[1])])[0]
    turn = Request((*prompt(60), *first.tokens, 5), 3, SAMPLINGS[0])
    assert engine.generate([turn])[0].cached == 128


@pytest.mark.parametrize("length", [127, 128, 129])
def test_the_newest_token_of_an_answer_is_not_in_its_slot_yet(length: int) -> None:
    model = built()
    engine = Engine(model, 1, prefix_tokens=1024)
    first = engine.generate([Request(prompt(60), length - 60, SAMPLINGS[1])])[0]
    turn = Request((*prompt(60), *first.tokens, 5, 6), 9, SAMPLINGS[0])
    done = engine.generate([turn])[0]
    assert done.cached == (128 if length > 128 else 96)
    assert done.tokens == Engine(model, 1).generate([turn])[0].tokens


def test_a_small_budget_replaces_what_was_not_used_lately() -> None:
    model, wanted = built(), requests(SAMPLINGS[1])
    fresh = tokens(Engine(model, 4).generate(wanted))
    for budget in (64, 130, 200):
        for slots, step_tokens in ((4, None), (2, 30)):
            engine = Engine(model, slots, prefix_tokens=budget, step_tokens=step_tokens)
            assert [tokens(engine.generate(wanted)) for _ in range(3)] == [fresh] * 3
            assert len(engine.runner.prefix._kept) == budget // BLOCK
    with pytest.raises(ValueError, match="prefix_tokens: 31 is less than a block of 32"):
        Engine(model, prefix_tokens=31)
    with pytest.raises(ValueError, match="prefix_tokens: -64 is less"):
        Engine(model, prefix_tokens=-64)


def test_other_weights_forget_what_was_read() -> None:
    model, one = built(), Request(prompt(140), 12, SAMPLINGS[0])
    engine = Engine(model, 2, prefix_tokens=1024)
    engine.generate([one])
    running = Request(prompt(70, 1), 40, SAMPLINGS[0])
    engine.add(running)
    engine.step()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.5)
    changed = tokens(Engine(model, 2).generate([one, running]))
    stale = engine.generate([one])[0]
    assert stale.cached == 128
    assert stale.tokens != changed[0]  # the control: nobody has said that the weights changed
    engine.add(running)
    engine.step()
    engine.weights_changed()
    while engine.busy:  # this request was read before, and is not kept
        engine.step()
    assert not engine.runner.prefix._kept
    done = engine.generate([one, running])
    assert tokens(done) == changed
    assert [c.cached for c in done] == [0, 0]


@pytest.mark.parametrize("settings", [{"cache": "int8"}, {"attention": DeltaNet(heads=2)}])
def test_a_cache_without_an_entry_for_each_token_is_not_kept(settings) -> None:
    kind = settings.pop("cache", "plain")
    model, wanted = built(**settings), requests(SAMPLINGS[0])
    engine = Engine(model, 4, cache=kind, prefix_tokens=512)
    assert len(engine.runner.prefix.obstacles) == 1
    done = [engine.generate(wanted) for _ in range(2)]
    assert done == [Engine(model, 4, cache=kind).generate(wanted)] * 2
    assert {c.cached for c in done[1]} == {0}


def test_an_error_forgets_what_may_be_incomplete() -> None:
    engine = Engine(built(), 1, prefix_tokens=512)
    engine.generate([Request(prompt(70), 2)])
    engine.clear()
    assert engine.generate([Request(prompt(70), 2)])[0].cached == 0


@pytest.mark.parametrize("ahead", [0, 2])
@torch.inference_mode()
def test_blocks_against_a_slow_reference(ahead: int) -> None:
    """Random rows over few beginnings. Each entry of the cache is a hash of all that it needs."""
    chance = random.Random(ahead)
    cache = Cache([FullCache([torch.zeros(3, 1, 400, 1, dtype=torch.int64)])], 3, 400)
    entries = cache.layers[0].tensors[0][:, 0, :, 0]
    prefix, used = PrefixCache(cache, 6 * BLOCK, ahead), list[tuple[int, ...]]()  # newest last
    running: list[tuple[Running, int]] = []  # and the tokens that were found
    for number in range(1500):
        width = chance.choice((BLOCK, BLOCK, BLOCK + 7))
        parts = [chance.choice((0, 0, 0, 1)) for _ in range(7)]
        ids = tuple(part for part in parts for _ in range(width))[: chance.randrange(1, 390)]
        one, slot = Running(number, Request(ids, 1), 0), chance.randrange(3)
        blocks = [ids[: end + ahead] for end in range(BLOCK, len(ids) - ahead + 1, BLOCK)][:6]
        known = next((n for n, block in enumerate(blocks) if block not in used), len(blocks))
        entries[slot] = -1
        found = prefix.restore(one, slot)
        assert found == min(known * BLOCK, len(ids) - 1)
        assert entries[slot, :found].tolist() == needs(ids, ahead)[:found]
        used = [b for b in used if b not in blocks[:known]] + blocks[:known][::-1]
        running.append((one, found))
        if len(running) > 4 or chance.random() < 0.3:
            one, found = running.pop(chance.randrange(len(running)))
            ids = one.request.prompt
            entries[slot, : len(ids)] = torch.tensor(needs(ids, ahead))
            read = chance.randrange(found, len(ids) + 1)
            prefix.store(one, slot, read)
            ends = range(BLOCK, read - ahead + 1, BLOCK)
            kept = [ids[: end + ahead] for end in ends][:6]
            used = ([b for b in used if b not in kept] + kept[::-1])[-6:]
        assert len(prefix._kept) == len(used)


def needs(ids: tuple[int, ...], ahead: int) -> list[int]:
    return [hash(ids[: place + 1 + ahead]) for place in range(len(ids))]
