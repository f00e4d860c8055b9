"""Prompts that are read in steps between decoding steps."""

import itertools
import subprocess
import sys

import pytest
import torch

from culm.engine.engine import Engine
from culm.engine.prefill import next_group
from culm.engine.prefix import PrefixCache
from culm.engine.queue import Queue
from culm.engine.request import Request, Running
from culm.engine.sampling import Sampling
from culm.model.attention.deltanet import DeltaNet
from culm.model.attention.gqa import GQA
from culm.model.attention.hyperbolic import Hyperbolic
from culm.model.attention.mla import MLA
from culm.model.cache import Cache
from culm.model.mtp import MTP
from culm.model.transformer import TransformerConfig

GREEDY = Sampling(temperature=0)
MEASURE = """
import sys
import torch
from culm.engine.engine import Engine
from culm.engine.request import Request
from culm.model.attention.gqa import GQA
from culm.model.transformer import TransformerConfig
from culm.train.memory import peak_bytes, reset_peak
torch.set_num_threads(1)
length, steps, backend = int(sys.argv[1]), int(sys.argv[2]) or None, sys.argv[3]
model = TransformerConfig(
    vocabulary=61, width=32, layers=1, context=length + 8, attention=GQA(heads=4, head_dim=8)
).build(seed=0).eval()
model.set_backend(backend)
engine = Engine(model, 1, step_tokens=steps)
engine.generate([Request((1,) * 600, 2)])
reset_peak()
before = peak_bytes()
engine.generate([Request((1,) * length, 2)])
print(peak_bytes() - before)
"""


def prompt(length: int, seed: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(0, 61, (length,), generator=generator).tolist())


def answers(engine: Engine, requests: list[Request]) -> list[tuple[int, ...]]:
    return [completion.tokens for completion in engine.generate(requests)]


REQUESTS = [
    Request(prompt(length, length), 12, Sampling(seed=length), logprobs=0)
    for length in (40, 3, 77, 16, 17, 33)
]


@pytest.mark.parametrize("slots", [1, 2, 3, 8])
@pytest.mark.parametrize("tokens", [1, 5, 16, 64])
def test_answers_are_those_of_prompts_read_at_once(model, slots, tokens):
    engine = Engine(model, slots, step_tokens=tokens)
    assert answers(engine, REQUESTS) == answers(Engine(model, 8), REQUESTS)


@pytest.mark.parametrize(
    "attention",
    [
        GQA(heads=2, window=8),
        GQA(heads=2, window=8, sink_tokens=2),
        MLA(heads=2, rank=8, head_dim=16, rope_dim=8),
        DeltaNet(heads=2),
        Hyperbolic(heads=2),
    ],
    ids=lambda attention: attention.kind,
)
@pytest.mark.parametrize("fused", [True, False])
def test_every_kind_of_cache(attention, fused):
    config = TransformerConfig(
        vocabulary=61, width=32, layers=2, context=96, attention=(attention,)
    )
    model = config.build(seed=3).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(6 if weight.ndim == 2 else 1)
    stepped = Engine(model, 3, step_tokens=16, fused=fused)
    assert answers(stepped, REQUESTS) == answers(Engine(model, 3, fused=fused), REQUESTS)


@pytest.mark.parametrize("settings", [{"cache": "int8"}, {"speculate": "ngram"}])
def test_with_other_settings_of_the_engine(model, settings):
    requests = [Request(one.prompt, 12, GREEDY) for one in REQUESTS]
    stepped = Engine(model, 3, step_tokens=32, **settings)
    assert answers(stepped, requests) == answers(Engine(model, 3, **settings), requests)


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize(
    "attention",
    [
        GQA(heads=2),
        GQA(heads=2, window=8, sink_tokens=2),
        MLA(heads=2, rank=8, head_dim=16, rope_dim=8),
    ],
    ids=lambda attention: f"{attention.kind}",
)
def test_heads_that_draft_read_prompts_in_steps_too(attention, depth):
    """A head reads tokens after its step, and what it stores is what it would have stored."""
    config = TransformerConfig(
        vocabulary=61, width=32, layers=2, context=96, attention=(attention,), mtp=MTP(depth=depth)
    )
    model = config.build(seed=3).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(6 if weight.ndim == 2 else 1)
    plain = answers(Engine(model, 3, step_tokens=16), REQUESTS)
    read: list[int] = []
    for tokens in (None, 5, 16):
        engine = Engine(model, 3, speculate="mtp", step_tokens=tokens)
        inner = engine.runner.cache
        assert answers(engine, REQUESTS) == plain
        engine.add(REQUESTS[2])
        while engine.waiting or engine._prompts.rows:
            engine.step()
        end = 77 - depth  # the last entries of the heads wait for tokens that are not there yet
        if attention.kind == "gqa" and attention.window is None:
            kept = [layer.tensors[0][0, :, :end].clone() for layer in inner.layers]
            read.append(len(kept))
            if tokens is None:
                first = kept
            for one, two in zip(kept, first, strict=True):
                torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)
    assert read in ([], [2 + depth] * 3)


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
@pytest.mark.parametrize(
    ("steps", "backend"),
    [
        pytest.param(256, "blocks", marks=pytest.mark.slow),
        pytest.param(None, "blocks", marks=pytest.mark.slow),
        pytest.param(None, "sdpa", marks=pytest.mark.slow),
    ],
)
def test_the_memory_of_a_prompt_is_linear_in_its_length(steps, backend):
    """Four times the tokens need four times the memory or less, whoever reads them."""
    peaks = []
    for length in (2048, 8192):
        line = [sys.executable, "-c", MEASURE, str(length), str(steps or 0), backend]
        done = subprocess.run(line, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    assert peaks[1] < 5 * max(peaks[0], 16 << 20), peaks


def test_a_running_request_does_not_wait_for_a_long_prompt(model):
    """It advances after every step of the prompt, and short prompts are not joined to more."""
    engine = Engine(model, 4, step_tokens=16)
    first = engine.add(Request((1, 2), 60, GREEDY))
    engine.step()
    long = [engine.add(Request(prompt(80, n), 4, GREEDY)) for n in range(3)]
    seen: list[int] = []
    waits, longest = 0, 0
    while not set(long) <= set(seen):
        events = [event.request for event in engine.step()]
        waits = 0 if first in events else waits + 1
        longest = max(longest, waits)
        seen += events
    assert longest == 1
    assert seen.count(first) >= 12


def test_many_rows_do_not_write_over_the_prompt_that_is_read(model):
    """Their number is rounded up in a forward, by slots that are free."""
    short = [Request((n,), 30, GREEDY) for n in range(17)]
    engine = Engine(model, 20, step_tokens=17, fused=False)
    numbers = [engine.add(request) for request in short]
    for _ in range(4):
        engine.step()
    long = Request(prompt(80, 1), 8, GREEDY)
    numbers.append(engine.add(long))
    found: dict[int, list[int]] = {number: [] for number in numbers}
    while engine.busy:
        for event in engine.step():
            found[event.request].append(event.token)
    assert tuple(found[numbers[-1]]) == Engine(model).generate([long])[0].tokens


def test_equal_prompts_are_read_once(model):
    requests = [Request(prompt(50, 1), 10, Sampling(seed=n)) for n in range(3)]
    engine = Engine(model, 4, step_tokens=16)
    read: list[int] = []
    inner = engine.runner.read

    def counted(row: Running, start: int, end: int, slot: int) -> torch.Tensor:
        read.append(end - start)
        return inner(row, start, end, slot)

    engine.runner.read = counted  # type: ignore[method-assign]
    assert answers(engine, requests) == answers(Engine(model, 4), requests)
    assert read == [16, 16, 16, 2]


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_prompt_is_aborted_while_it_is_read(model, which):
    engine = Engine(model, 4, step_tokens=16)
    requests = [Request(prompt(50, 1), 5, Sampling(seed=n)) for n in range(2)]
    numbers = [engine.add(request) for request in requests]
    engine.step()
    aborted = numbers[:which] if which < 2 else numbers
    for number in aborted:
        engine.abort(number)
    assert engine.busy == (which < 2)
    found: dict[int, list[int]] = {number: [] for number in numbers}
    while engine.busy:
        for event in engine.step():
            found[event.request].append(event.token)
    expected = answers(Engine(model, 4), requests)
    for number, tokens in zip(numbers, expected, strict=True):
        assert tuple(found[number]) == (() if number in aborted else tokens)
    engine.add(requests[0])
    engine.step()
    engine.clear()
    assert not engine.busy


def test_what_fits_into_a_step():
    def row(length: int, seed: int = 0) -> Running:
        return Running(next(numbers), Request(prompt(length, seed)), 0)

    def lengths(*rows: Running, free: int = 8) -> list[int]:
        queue = Queue()
        for one in rows:
            queue.add(one)
        return [found.length for found in next_group(queue, free, 16, none).rows]

    numbers = itertools.count()
    none = PrefixCache(Cache([], 1, 1), 0)
    assert lengths(row(4), row(5), row(5, 1), row(5, 2)) == [4, 5, 5]
    assert lengths(row(4), row(5), row(5, 1), row(5)) == [4, 5, 5, 5]
    assert lengths(row(4), row(4, 1), free=1) == [4]
    assert lengths(row(40), row(40), row(3)) == [40, 40]
    assert lengths(row(3), row(40)) == [3]
