"""A second model that drafts: it changes how many steps a text takes, and nothing of the text."""

import copy
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from every_sampling import kinds_and_samplings
from tiny_models import tiny_model

import culm
from culm.adapt.lora import LoRA, adapters_of
from culm.adapt.multi_lora import attach_adapters
from culm.config import SettingError
from culm.convert import native
from culm.engine import draft_model
from culm.engine.draft_model import SIZE, ModelDrafter
from culm.engine.engine import Engine
from culm.engine.request import Request, Running
from culm.engine.sampling import Sampling
from culm.model.attention.deltanet import DeltaNet
from culm.model.attention.gqa import GQA
from culm.model.attention.mla import MLA
from culm.model.transformer import Transformer
from culm.tokenizer.bytes import Bytes

WORDS = 61
KINDS = {
    "plain": {"attention": GQA(heads=2)},
    "windows": {"attention": GQA(heads=2, window=5, sink_tokens=1)},
    "latents": {"attention": MLA(heads=2, rank=8, head_dim=16, rope_dim=8)},
    "learned positions": {"attention": GQA(heads=2, rope=None), "learned_positions": True},
}
SAMPLINGS = [
    Sampling(temperature=0),
    Sampling(seed=5),
    Sampling(temperature=0.7, top_p=0.9, seed=8),
    Sampling(1.3, top_k=7, repetition_penalty=1.3, frequency_penalty=0.5, bias=((4, 2.0),), seed=1),
]


def like(model: Transformer, noise: float = 0.05) -> Transformer:
    """A draft model that is often right."""
    near = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in near.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * weight.std() * noise)
    return near


def requests(sampling: Sampling) -> list[Request]:
    chance = random.Random(1)
    lengths = [1, 2, 3, 4, 7, 19, 33, 50]
    rows = [tuple(chance.randrange(2, WORDS) for _ in range(n)) for n in lengths]
    return [
        Request(p, 10 + 3 * i, replace(sampling, seed=i), frozenset({0, 1}))
        for i, p in enumerate((*rows, rows[4]))
    ]


@pytest.mark.parametrize(("kind", "sampling"), kinds_and_samplings(KINDS, SAMPLINGS))
def test_tokens_are_those_of_plain_decoding(kind: str, sampling: Sampling) -> None:
    """With a draft model that is often right, and with one that never is."""
    model, wanted = tiny_model(**KINDS[kind]), requests(sampling)
    plain = Engine(model, 8).generate(wanted)
    for draft in (like(model), tiny_model(seed=9, layers=1, **KINDS[kind])):
        for slots, step_tokens in ((8, None), (3, None), (3, 16)):
            engine = Engine(model, slots, speculate=draft, step_tokens=step_tokens)
            for one, two in zip(plain, engine.generate(wanted), strict=True):
                assert (two.tokens, two.finish) == (one.tokens, one.finish)
                assert two.logprobs == pytest.approx(one.logprobs, abs=1e-4)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "plain", "nucleus", "penalties"])
def test_accepted_drafts_save_steps(sampling: Sampling) -> None:
    """The model itself as its draft is always right, also where it samples."""
    model, counted = tiny_model(), []
    one = Request((7, 9, 3), 41, sampling)
    done = Engine(model, 1, speculate=model).generate([one], counted.append)[0]
    assert done.tokens == Engine(model, 1).generate([one])[0].tokens
    assert sum(counted) == 41
    assert len(counted) == 2 + -(-39 // (SIZE + 1))  # the prompt, one token, then five a step
    far = Engine(model, 1, speculate=tiny_model(seed=9))
    slow: list[int] = []
    far.generate([one], slow.append)
    assert len(slow) > 2 * len(counted)


@pytest.mark.parametrize("kind", [pytest.param("plain", marks=pytest.mark.slow), "windows"])
@torch.inference_mode()
def test_what_the_draft_model_keeps_is_what_it_would_read(monkeypatch, kind: str) -> None:
    """Rows in any order that come, go, grow by a part of their draft, and end."""
    monkeypatch.setattr(draft_model, "PART", 23)
    model, draft = (tiny_model(seed=seed, layers=1, **KINDS[kind]) for seed in (1, 2))
    drafter, chance = ModelDrafter(model, draft, 4, 96), random.Random(4)
    rows: list[Running] = []
    drafted = 0
    for step in range(250):
        if len(rows) < 4 and chance.random() < 0.4:
            ids = tuple(chance.randrange(WORDS) for _ in range(chance.randint(1, 60)))
            rows.append(Running(step, Request(ids, 90 - len(ids)), 0, [3]))
        if chance.random() < 0.3:
            chance.shuffle(rows)
        for row in rows:
            row.draft.clear()
        if rows:
            drafter.draft(rows, None, lambda logits: logits.argmax(-1))
        for slot, row in enumerate(rows):
            ids = [*row.tokens_from(0), *row.draft]
            for length in range(row.length, len(ids)):  # a draft is what the model itself says
                assert draft(torch.tensor([ids[:length]]))[0, -1].argmax() == ids[length]
            assert drafter._known[row.id].slot == slot
            drafted += len(row.draft)
            row.output += row.draft[: chance.randint(0, len(row.draft))]
            row.output.append(chance.randrange(WORDS))
        rows = [row for row in rows if len(row.output) < 88 - len(row.request.prompt)]
        if rows and chance.random() < 0.1:
            rows.pop(chance.randrange(len(rows)))
    assert drafted > 1000


def test_with_everything_else(monkeypatch) -> None:
    """Adapters, blocks of prompts, interruptions: the draft model knows of none of them."""
    monkeypatch.setattr(draft_model, "PART", 17)
    model = tiny_model(context=192)
    draft, other = like(model), copy.deepcopy(model)
    LoRA(rank=4).apply(other, 0)
    for layer in adapters_of(other).values():
        torch.nn.init.normal_(layer.b, std=0.3)
    attach_adapters(model, {"first": adapters_of(other)})
    shared = tuple(range(2, 61)) + tuple(range(40, 2, -1))
    wanted = [
        Request((*shared, n), 20, Sampling(seed=n), adapter=("first", None)[n % 2], priority=n % 3)
        for n in range(9)
    ]
    plain = [c.tokens for c in Engine(model, 3).generate(wanted)]
    engine = Engine(model, 3, speculate=draft, prefix_tokens=512, step_tokens=48)
    numbers, events = {}, []
    for index, one in enumerate(wanted):
        numbers[engine.add(one)] = index
        events += [event for _ in range(4) for event in engine.step()]
    while engine.busy:
        events += engine.step()
    found: dict[int, list[int]] = {n: [] for n in range(9)}
    for event in events:
        found[numbers[event.request]].append(event.token)
    assert [tuple(tokens) for tokens in found.values()] == plain


def exact(model: Transformer, prompt: tuple[int, ...], place: int) -> torch.Tensor:
    """(V,) fp64: how likely each token is in a place of the answer, over all ways to it."""
    rows, weights = torch.tensor([prompt]), torch.ones(1, dtype=torch.float64)
    for _ in range(place):
        p = model(rows)[:, -1].double().softmax(-1).detach()
        weights = (weights[:, None] * p).flatten()
        vocabulary = torch.arange(p.shape[1]).repeat(len(rows))[:, None]
        rows = torch.cat((rows.repeat_interleave(p.shape[1], 0), vocabulary), 1)
    return (weights[:, None] * model(rows)[:, -1].double().softmax(-1)).sum(0).detach()


@pytest.mark.slow
@pytest.mark.parametrize("control", [False, True])
def test_samples_follow_the_distribution_of_the_model(monkeypatch, control: bool) -> None:
    """Chi-squared with 7 degrees of freedom. The control accepts every draft, and must fail."""
    words, count, prompt = 8, 3000, (1, 2)
    model, draft = tiny_model(4, seed=3, vocabulary=words), tiny_model(4, seed=4, vocabulary=words)
    engine = Engine(model, 64, speculate=draft)
    chooser = engine.chooser
    honest = chooser.sample

    def accepting(rows, logits, outputs):
        tokens, logprobs = honest(rows, logits, outputs)
        for row, chosen in zip(rows, tokens, strict=True):
            if len(chosen) > 1 and row.draft:
                chosen[: len(row.draft)] = torch.tensor(row.draft)
        return tokens, logprobs

    if control:
        monkeypatch.setattr(chooser, "sample", accepting)
    done = engine.generate([Request(prompt, 5, Sampling(seed=n)) for n in range(count)])
    for place in (2, 3):
        expected = exact(model, prompt, place) * count
        assert float(expected.min()) > 20
        seen = Counter(completion.tokens[place] for completion in done)
        chi = sum((seen[n] - float(expected[n])) ** 2 / float(expected[n]) for n in range(words))
        assert (chi > 100) if control else (chi < 24.3)  # p = 0.001


def test_what_cannot_draft_is_refused() -> None:
    model = tiny_model()
    with pytest.raises(
        SettingError, match="speculate: the draft model has 60 tokens and the model"
    ):
        Engine(model, speculate=tiny_model(vocabulary=60))
    with pytest.raises(SettingError, match="speculate: the draft model's context of 50 is shorter"):
        Engine(model, speculate=tiny_model(context=50))
    states = tiny_model(attention=[DeltaNet(heads=2), GQA(heads=2)])
    with pytest.raises(SettingError, match="speculate: a layer of the draft model keeps a state"):
        Engine(model, speculate=states)
    with pytest.raises(SettingError, match="speculate: a layer of this model keeps a state"):
        Engine(states, speculate=model)


def test_a_draft_model_is_loaded_from_a_folder(tmp_path: Path) -> None:
    words = Bytes(specials=True).build()
    big = tiny_model(vocabulary=words.vocabulary)
    native.save(big, words, tmp_path / "model")
    native.save(like(big), words, tmp_path / "small")
    native.save(tiny_model(vocabulary=256), Bytes().build(), tmp_path / "other")
    plain = culm.load(tmp_path / "model").generate("def ", 20, seed=1)
    loaded = culm.load(tmp_path / "model", draft=tmp_path / "small")
    assert loaded.generate("def ", 20, seed=1) == plain
    with pytest.raises(SettingError, match="other: its tokenizer is not that of"):
        culm.load(tmp_path / "model", draft=tmp_path / "other")
    with pytest.raises(SettingError, match="draft: speculate=ngram drafts tokens already"):
        culm.load(tmp_path / "model", speculate="ngram", draft=tmp_path / "small")
