"""Drafts change how many steps a text takes, and nothing of the text."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from every_sampling import kinds_and_samplings
from learning import build, mean
from tiny_models import tiny_model

import culm
from culm.adapt.lora import LoRA, adapters_of
from culm.adapt.multi_lora import attach_adapters
from culm.batch import IGNORED, Batch, counts_of
from culm.config import SettingError
from culm.convert import native
from culm.convert.export import quantize
from culm.engine.engine import Engine
from culm.engine.request import Completion, Request
from culm.engine.sampling import Sampling
from culm.model.attention.deltanet import DeltaNet
from culm.model.attention.gqa import GQA
from culm.model.attention.mla import MLA
from culm.model.block import Residual
from culm.model.context import Context
from culm.model.mlp.gated import SwiGLU
from culm.model.mlp.moe import MoE
from culm.model.mtp import MTP, shifted
from culm.model.transformer import Transformer, TransformerConfig
from culm.objective.next_token import NextToken
from culm.optim.adamw import AdamW
from culm.tokenizer.bytes import Bytes

WORDS = 61
KINDS = {
    "one head": {"mtp": MTP(depth=1)},
    "three heads": {"mtp": MTP(depth=3)},
    "latents": {"attention": MLA(heads=2, rank=8, head_dim=16, rope_dim=8)},
    "windows": {"attention": [GQA(heads=2), GQA(heads=2, window=5, sink_tokens=1)]},
    "experts": {"mlp": [SwiGLU(), MoE(experts=4, hidden=16, shared=1)]},
    "learned positions": {"attention": GQA(heads=2, rope=None), "learned_positions": True},
    "mixed values": {
        "attention": GQA(heads=2, value_residual=True), "residual": Residual(gains=True),
    },
}  # fmt: skip
SAMPLINGS = [
    Sampling(temperature=0),
    Sampling(seed=5),
    Sampling(temperature=0.7, top_p=0.9, seed=8),
    Sampling(1.3, top_k=7, repetition_penalty=1.3, frequency_penalty=0.5, bias=((4, 2.0),), seed=1),
]


def built(**more) -> Transformer:
    """Its heads have learned nothing."""
    return tiny_model(**{"context": 64, "mtp": MTP(depth=2), **more})


@pytest.fixture(scope="module")
def fluent() -> Transformer:
    """It has learned rows in which t + 1 = f(t), and its heads as well."""
    torch.set_num_threads(1)
    config = TransformerConfig(
        vocabulary=WORDS, width=48, layers=1, context=64, attention=GQA(heads=2), mtp=MTP(depth=3)
    )
    follows = torch.randperm(WORDS, generator=torch.Generator().manual_seed(3))
    columns = [torch.arange(WORDS)]
    for _ in range(23):
        columns.append(follows[columns[-1]])
    tokens = torch.stack(columns, 1)
    positions = torch.arange(24).expand_as(tokens)
    targets = shifted(tokens, 1, IGNORED)
    data = Batch(tokens, targets, positions, counts=counts_of(targets))
    objective = build(NextToken(), config.build())
    optimizer = AdamW(rate=0.01).build(objective)
    for _ in range(60):
        loss = objective(data)
        mean(loss, data).backward()
        optimizer.step()
        optimizer.zero_grad()
    return objective.model.eval()


def requests(sampling: Sampling, stop: frozenset[int] = frozenset({0, 1})) -> list[Request]:
    """Prompts from one token on; two of them are the same, and each has an end of its own."""
    generator = torch.Generator().manual_seed(1)
    lengths = [1, 2, 3, 4, 7, 19, 33]
    rows = [tuple(torch.randint(2, WORDS, (n,), generator=generator).tolist()) for n in lengths]
    return [Request(p, 10 + 3 * i, sampling, stop) for i, p in enumerate((*rows, rows[4]))]


def steps(engine: Engine, wanted: list[Request]) -> tuple[list[Completion], int]:
    """What comes, and in how many steps."""
    counted: list[int] = []
    return engine.generate(wanted, counted.append), len(counted)


@pytest.mark.parametrize(("kind", "sampling"), kinds_and_samplings(KINDS, SAMPLINGS))
def test_tokens_are_those_of_plain_decoding(kind: str, sampling: Sampling) -> None:
    model, wanted = built(**KINDS[kind]), requests(sampling)
    for slots in (8, 3):
        plain, ahead = (
            Engine(model, slots, speculate=speculate).generate(wanted)
            for speculate in (None, "mtp")
        )
        for one, two in zip(plain, ahead, strict=True):
            assert (two.tokens, two.finish) == (one.tokens, one.finish)
            assert two.logprobs == pytest.approx(one.logprobs, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("sampling", SAMPLINGS[:3], ids=["greedy", "plain", "nucleus"])
def test_accepted_drafts_save_steps(fluent: Transformer, sampling: Sampling) -> None:
    """Three heads that know what comes: four tokens a step, but for the first two steps."""
    one = Request((7,), 42, sampling)
    plain, slow = steps(Engine(fluent, 1), [one])
    ahead, fast = steps(Engine(fluent, 1, speculate="mtp"), [one])
    assert ahead[0].tokens == plain[0].tokens
    assert slow == 42
    assert fast <= 14  # 2 + 40 / 4 where every sampled token is one that was learned


def test_rejected_drafts_cost_no_steps() -> None:
    """Its control: heads that know nothing."""
    changed = built(mtp=MTP(depth=3), attention=GQA(heads=2))
    one = Request((7,), 42, SAMPLINGS[0])
    assert 36 <= steps(Engine(changed, 1, speculate="mtp"), [one])[1] <= 42


def test_an_accepted_token_is_reported_like_any_other(fluent: Transformer) -> None:
    received = []
    for speculate in (None, "mtp"):
        engine = Engine(fluent, 2, speculate=speculate)
        engine.add(Request((7, 9), 20, Sampling(seed=3), logprobs=2))
        events = []
        while engine.busy:
            events += engine.step()
        received.append(events)
    for one, two in zip(*received, strict=True):
        assert (two.token, two.finish) == (one.token, one.finish)
        assert [token for token, _ in two.top] == [token for token, _ in one.top]
        assert [p for _, p in two.top] == pytest.approx([p for _, p in one.top], abs=1e-4)


def test_a_stop_in_the_draft_ends_there(fluent: Transformer) -> None:
    free = Engine(fluent).generate([Request((7,), 30, SAMPLINGS[0])])[0].tokens
    for place in (4, 5, 6, 7):
        wanted = Request((7,), 30, SAMPLINGS[0], frozenset({free[place]}))
        done = Engine(fluent, speculate="mtp").generate([wanted])[0]
        assert done.tokens == free[: free.index(free[place]) + 1]
        assert done.finish == "stop"


@torch.inference_mode()
def test_rejected_drafts_leave_nothing_behind(fluent: Transformer) -> None:
    """What trunk and heads keep is what one forward over the text would have kept."""
    prompt = tuple(range(7, 27))  # longer than what a step reads
    engine = Engine(fluent, 1, speculate="mtp")
    engine.add(Request(prompt, 25, Sampling(temperature=3.0, seed=2)))
    cache = engine.runner.cache
    engine.step()
    while engine.busy:
        row = engine.running[0]
        engine.step()
        length = row.length
        whole = fluent.mtp_cache(1, length)
        context = Context(torch.arange(length)[None], cache=whole.view(length))
        fluent.mtp_hidden(torch.tensor([[*prompt, *row.output]]), context)
        for by, (kept, wanted) in enumerate(zip(cache.layers, whole.layers, strict=True)):
            end = length - 1 - by  # one layer of the trunk, then the heads
            for one, two in zip(kept.tensors, wanted.tensors, strict=True):
                torch.testing.assert_close(one[0, :, :end], two[0, :, :end], atol=1e-5, rtol=1e-4)


def test_rows_that_fill_up_and_rows_that_move() -> None:
    """More than 16 rows are filled up to 32; requests come while others run."""
    model = built(attention=[GQA(heads=2), GQA(heads=2, window=5, sink_tokens=1)])
    wanted = [
        replace(request, sampling=replace(SAMPLINGS[1], seed=number), max_tokens=5 + number % 9)
        for number, request in enumerate(requests(SAMPLINGS[1]) * 5)
    ]
    plain = Engine(model, 8).generate(wanted)
    engine = Engine(model, 35, speculate="mtp")
    received: dict[int, list[int]] = {}
    for number, request in enumerate(wanted):
        received[engine.add(request)] = []
        for event in engine.step() if number % 2 or number > 34 else ():
            received[event.request].append(event.token)
    while engine.busy:
        for event in engine.step():
            received[event.request].append(event.token)
    assert [tuple(tokens) for tokens in received.values()] == [c.tokens for c in plain]


@pytest.mark.parametrize("cache", ["int8", "int4"])
def test_keys_and_values_that_are_rounded_again(cache) -> None:
    """Rejected drafts across the borders of groups: hardly farther from exact than without."""
    model = built(context=128)
    errors = []
    for speculate in (None, "mtp"):
        one = Request((7,), 120, Sampling(seed=2))
        done = Engine(model, 1, cache=cache, speculate=speculate).generate([one])[0]
        tokens = torch.tensor([[7, *done.tokens]])
        exact = model.logprobs(tokens[:, :-1], tokens[:, 1:])[0].detach()
        errors.append(float((torch.tensor(done.logprobs) - exact).abs().mean()))

    assert 0 < errors[1] < 1.5 * errors[0], errors


@pytest.mark.parametrize("cache", ["int8", "int4"])
def test_rounded_keys_and_values(fluent: Transformer, cache) -> None:
    one = Request((7,), 50, SAMPLINGS[0])
    plain = Engine(fluent, 1, cache=cache).generate([one])[0]
    ahead, count = steps(Engine(fluent, 1, cache=cache, speculate="mtp"), [one])
    assert ahead[0].tokens == plain.tokens
    assert count < 20


def test_rows_with_adapters_of_their_own() -> None:
    model = built()
    other = copy.deepcopy(model)
    LoRA(rank=4).apply(other, 0)
    for layer in adapters_of(other).values():
        torch.nn.init.normal_(layer.b, std=0.3)
    attach_adapters(model, {"first": adapters_of(other)})
    wanted = [Request((4, 5), 20, SAMPLINGS[1], adapter=name) for name in ("first", None)]
    plain, ahead = (
        Engine(model, 2, speculate=speculate).generate(wanted) for speculate in (None, "mtp")
    )
    assert [c.tokens for c in ahead] == [c.tokens for c in plain]
    assert len({c.tokens for c in ahead}) == 2


def test_abort_between_drafts(fluent: Transformer) -> None:
    wanted = [Request((n,), 30, SAMPLINGS[0]) for n in (3, 4, 5)]
    engine = Engine(fluent, 3, speculate="mtp")
    numbers = [engine.add(request) for request in wanted]
    received: dict[int, list[int]] = {number: [] for number in numbers}
    for step in range(40):
        if step == 3:
            engine.abort(numbers[0])
        for event in engine.step():
            received[event.request].append(event.token)
    assert not engine.busy
    for number, request in list(zip(numbers, wanted, strict=True))[1:]:
        assert tuple(received[number]) == Engine(fluent).generate([request])[0].tokens


@pytest.mark.parametrize("length", [3, 4, 6, 64])
def test_slots_that_are_hardly_longer_than_the_drafts(fluent: Transformer, length: int) -> None:
    one = Request((7,), length - 1, SAMPLINGS[0])
    plain, ahead = (
        Engine(fluent, 1, length, speculate=speculate).generate([one])[0]
        for speculate in (None, "mtp")
    )
    assert ahead.tokens == plain.tokens


def test_what_cannot_draft_is_refused() -> None:
    with pytest.raises(SettingError, match=r"speculate: this model has no heads"):
        Engine(built(mtp=None), speculate="mtp")
    with pytest.raises(SettingError, match=r"speculate: a layer of this model keeps a state"):
        Engine(built(attention=[DeltaNet(heads=2), GQA(heads=2)]), speculate="mtp")


def test_a_folder_is_loaded_with_its_heads(tmp_path: Path) -> None:
    words = Bytes(specials=True).build()
    native.save(built(vocabulary=words.vocabulary), words, tmp_path / "model")
    plain, ahead = (
        culm.load(tmp_path / "model", speculate=speculate) for speculate in (None, "mtp")
    )
    assert (len(plain.model.mtp), len(ahead.model.mtp)) == (0, 2)
    assert ahead.generate("def ", 20, seed=1) == plain.generate("def ", 20, seed=1)
    quantize(tmp_path / "model", tmp_path / "small", "int8")
    plain, ahead = (
        culm.load(tmp_path / "small", dtype="float32", speculate=each) for each in (None, "mtp")
    )
    assert ahead.generate("def ", 20, seed=1) == plain.generate("def ", 20, seed=1)
    native.save(built(mtp=None, vocabulary=words.vocabulary), words, tmp_path / "none")
    with pytest.raises(SettingError, match="speculate: this model has no heads"):
        culm.load(tmp_path / "none", speculate="mtp")
