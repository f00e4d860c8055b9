import copy
from dataclasses import replace

import pytest
import torch

from culm.engine.constraint import OneOf
from culm.engine.engine import Engine
from culm.engine.request import Request
from culm.engine.sampling import Sampling
from culm.exits import DIVERGED, NotFinite
from culm.model.context import Context

GREEDY = Sampling(temperature=0)


def prompts(count: int) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 24, (count,), generator=generator).tolist()
    return [tuple(torch.randint(0, 61, (n,), generator=generator).tolist()) for n in lengths]


@pytest.mark.parametrize("backend", ["sdpa", "blocks"])
@torch.inference_mode()
def test_cached_decoding_equals_one_forward(model, backend):
    model.set_backend(backend)
    rows = [torch.tensor(p) for p in [tuple(range(20)), (3, 1, 4), (9,), tuple(range(40, 51))]]
    more = torch.arange(4 * 6).view(4, 6) % 61
    cache = model.cache(7, 32)
    longest = max(map(len, rows))
    padded = torch.stack([torch.nn.functional.pad(r, (0, longest - len(r))) for r in rows])
    positions = torch.arange(longest).expand(4, -1)
    model(padded, Context(positions, cache=cache.view(longest, 2)))
    for step in range(6):
        at = torch.tensor([[len(row) + step] for row in rows])
        context = Context(at, cache=cache.view(32, 2))
        cached = model(more[:, step : step + 1], context)[:, 0]
        for index, row in enumerate(rows):
            full = model(torch.cat((row, more[index, : step + 1]))[None])[0, -1]
            torch.testing.assert_close(cached[index], full, atol=1e-5, rtol=1e-5)
    model.set_backend("sdpa")


@pytest.mark.parametrize(
    "sampling",
    [
        GREEDY,
        Sampling(seed=5),
        Sampling(temperature=0.7, top_p=0.9, seed=8),
        Sampling(temperature=1.3, top_k=7, min_p=0.02, repetition_penalty=1.2, seed=1),
    ],
)
def test_batch_of_eight_equals_eight_single_runs(model, sampling):
    requests = [Request(p, 24, sampling, frozenset({0, 1})) for p in prompts(8)]
    together = Engine(model, slots=8).generate(requests)
    alone = [Engine(model, slots=1).generate([r])[0] for r in requests]
    assert [c.tokens for c in together] == [c.tokens for c in alone]
    assert [c.finish for c in together] == [c.finish for c in alone]


def test_fewer_slots_than_requests_change_nothing(model):
    requests = [Request(p, 4 + 3 * i, Sampling(seed=i)) for i, p in enumerate(prompts(9))]
    assert [c.tokens for c in Engine(model, slots=9).generate(requests)] == [
        c.tokens for c in Engine(model, slots=2).generate(requests)
    ]


def test_mixed_settings_keep_to_their_rows(model):
    kinds = [GREEDY, Sampling(seed=2), Sampling(temperature=0.5, top_k=3, seed=3)]
    requests = [Request((5, 6, 7), 12, kind) for kind in kinds]
    together = Engine(model, slots=3).generate(requests)
    alone = [Engine(model, slots=1).generate([r])[0] for r in requests]
    assert [c.tokens for c in together] == [c.tokens for c in alone]


def test_equal_prompts_are_read_once_and_answered_separately(model):
    a, b = (7, 7, 7, 2), (4, 8)
    requests = [Request(p, 10, Sampling(seed=i)) for i, p in enumerate((a, b, a, b, a))]
    together = Engine(model, slots=5).generate(requests)
    alone = [Engine(model, slots=1).generate([r])[0] for r in requests]
    assert [c.tokens for c in together] == [c.tokens for c in alone]
    assert len({c.tokens for c in together}) == 5


def test_logprobs_are_those_of_the_tempered_and_of_the_raw_model(model):
    engine = Engine(model, slots=1)
    sampling = Sampling(temperature=0.6, top_k=4, seed=11)
    engine.add(Request((3, 9, 27), 8, sampling, logprobs=3))
    events = []
    while engine.busy:
        events += engine.step()
    tokens = torch.tensor([[3, 9, 27] + [event.token for event in events]])
    logits = model(tokens)[0, 2:-1].detach()
    tempered, raw = (logits / 0.6).log_softmax(-1), logits.log_softmax(-1)
    for step, event in enumerate(events):
        assert event.logprob == pytest.approx(float(tempered[step, event.token]), abs=1e-4)
        chosen, *best = event.top
        assert chosen[0] == event.token
        assert chosen[1] == pytest.approx(float(raw[step, event.token]), abs=1e-4)
        assert [token for token, _ in best] == raw[step].topk(3).indices.tolist()
    assert events[-1].finish == "length"


def test_the_stop_token_ends_and_is_part_of_the_result(model):
    free = Engine(model).generate([Request((1, 2, 3), 20, GREEDY)])[0]
    stop = free.tokens[4]
    stopped = Engine(model).generate([Request((1, 2, 3), 20, GREEDY, frozenset({stop}))])[0]
    assert stopped.finish == "stop"
    assert stopped.tokens == free.tokens[: free.tokens.index(stop) + 1]
    assert len(stopped.logprobs) == len(stopped.tokens)


@pytest.mark.parametrize("slot", [0, 1, 2])
def test_abort_frees_the_slot_and_leaves_the_others_alone(model, slot):
    requests = [Request(p, 12, GREEDY) for p in prompts(4)]
    engine = Engine(model, slots=3)
    numbers = [engine.add(request) for request in requests]
    received = {number: [] for number in numbers}
    for step in range(40):
        if step == 3:
            aborted = engine.running[slot].id
            engine.abort(aborted)
        if step == 4:
            engine.abort(12345)  # unknown: nothing happens
        for event in engine.step():
            received[event.request].append(event.token)
    assert 0 < len(received[aborted]) < 12
    assert not engine.busy
    for number, request in zip(numbers, requests, strict=True):
        if number != aborted:
            assert tuple(received[number]) == Engine(model).generate([request])[0].tokens


def test_a_cleared_engine_starts_again(model):
    requests = [Request(p, 8, GREEDY) for p in prompts(5)]
    engine = Engine(model, slots=2)
    expected = engine.generate(requests)
    for request in requests:
        engine.add(request)
    engine.step()
    engine.clear()
    assert not engine.busy
    assert engine.generate(requests) == expected


def test_a_slot_is_no_longer_than_the_context(model):
    with pytest.raises(ValueError, match="more than the model's context of 96"):
        Engine(model, slots=1, length=97)


def test_a_tiny_temperature_takes_the_best_token(model):
    best, cold = (
        Engine(model).generate([Request((1, 2, 3), 8, Sampling(temperature=t, seed=1))])[0]
        for t in (0.0, 1e-38)
    )
    assert cold == best


def test_abort_of_a_waiting_request(model):
    engine = Engine(model, slots=1)
    engine.add(Request((1,), 3, GREEDY))
    engine.abort(engine.add(Request((2,), 3, GREEDY)))
    assert [waiting.id for waiting in engine.waiting] == [0]


def test_a_full_slot_is_used_to_its_last_place(model):
    request = Request(tuple(range(30)), 10, GREEDY)
    exact = Engine(model, slots=2, length=40).generate([request])[0]
    assert exact.tokens == Engine(model, slots=2).generate([request])[0].tokens


def test_progress_counts_every_token(model):
    counted = []
    requests = [Request((1, 2), 5, GREEDY), Request((3,), 7, GREEDY)]
    Engine(model, slots=1).generate(requests, counted.append)
    assert sum(counted) == 12


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request((), 4), "prompt: it is empty"),
        (Request((1,), 0), "max_tokens: 0 is less than 1"),
        (Request((1,) * 90, 10), "longer than the 96 tokens"),
        (Request((1, 61), 4), "token 61 is outside the vocabulary of 61"),
        (Request((-1,), 4), "token -1 is outside"),
        (Request((1,), 4, Sampling(bias=((99, 1.0),))), "bias: token 99 is outside"),
    ],
)
def test_bad_requests_are_refused_in_a_sentence(model, request_, words):
    engine = Engine(model)
    with pytest.raises(ValueError, match=words):
        engine.add(request_)
    assert not engine.busy


def test_engine_needs_a_slot(model):
    with pytest.raises(ValueError, match="slots: 0"):
        Engine(model, slots=0)


def test_rows_that_are_no_tokens_are_never_sampled(model):
    """A model may have more rows than its tokenizer has tokens."""
    few = 5
    requests = [Request((1, 2), 20, Sampling(temperature=5.0, seed=seed)) for seed in range(9)]
    done = Engine(model, vocabulary=few).generate(requests)
    assert {token for completion in done for token in completion.tokens} == set(range(few))
    assert all(torch.isfinite(torch.tensor(completion.logprobs)).all() for completion in done)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(seed=3), Sampling(top_k=3, seed=1)])
def test_suppressed_tokens_are_never_sampled(model, sampling):
    """Others take their place, and requests with a bias cannot bring them back."""
    request = Request((4, 5), 40, sampling)
    free = Engine(model).generate([request])[0].tokens
    barred = sorted(set(free))[:6]
    tokens = Engine(model, suppressed=barred).generate([request])[0].tokens
    assert len(tokens) == 40
    assert not set(tokens) & set(barred)
    biased = replace(sampling, bias=tuple((token, 100.0) for token in barred))
    tokens = Engine(model, suppressed=barred).generate([replace(request, sampling=biased)])
    assert not set(tokens[0].tokens) & set(barred)


def test_a_constraint_may_allow_a_suppressed_token(model):
    """It has nothing else to choose; rows next to it are suppressed as ever."""
    answers = OneOf(((7, 8),))
    forced = Request((4, 5), 2, GREEDY, constraint=answers)
    free = Request((4, 5), 20, GREEDY)
    engine = Engine(model, suppressed=[7, 8])
    one, two = engine.generate([forced, free])
    assert one.tokens == (7, 8)
    assert not {7, 8} & set(two.tokens)


def test_a_model_that_gives_nan_gives_no_completion(model):
    """Not even a short one, which a rollout would be rewarded for."""
    broken = copy.deepcopy(model)
    with torch.no_grad():
        next(broken.blocks.parameters()).fill_(float("nan"))
    with pytest.raises(NotFinite, match="gave NaN") as found:
        Engine(broken).generate([Request((1, 2), 4)])
    assert found.value.exit_code == DIVERGED
    assert Engine(model).generate([Request((1, 2), 4)])[0].tokens
