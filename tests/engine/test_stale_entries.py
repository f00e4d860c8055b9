"""What one request leaves in a cache never reaches another, be it very large or NaN."""

import pytest
import torch
from fused_models import build, here

from culm.convert.weights import set_precision
from culm.engine.engine import Engine
from culm.engine.request import NotFinite, Request
from culm.engine.sampling import Sampling
from culm.model.attention.gqa import GQA
from culm.model.context import Context
from culm.model.layer_cache import FP16_MAX
from culm.model.transformer import TransformerConfig

LARGE = 5  # a token
GREEDY = Sampling(temperature=0)  # never takes LARGE, whose own answer is NaN
EARLIER, SHORT, LONG = (*[1] * 20, LARGE, 6, 7), (1, 2, 3, 4), (*range(8, 40),)


def model_with(token, size):
    """Keys and values of the first layer are beyond fp16 for a token, and for no other one."""
    model = build("many heads", "bf16")
    embedding, attention = model.embed.weight.data, model.blocks[0].attention
    embedding[:, 0] = 0
    embedding[token] = 0
    embedding[token, 0] = 1
    for part in (attention.k, attention.v):
        part.weight.data[:, 0] = size
    return model


def read(model, tokens, kind):
    cache = model.cache(1, 32, kind)
    positions = torch.arange(len(tokens))[None]
    view = cache.view(len(tokens))
    return model(torch.tensor([tokens]), Context(positions, cache=view))[0], cache


@pytest.mark.parametrize("kind", ["plain", "int8", "int4"])
@torch.inference_mode()
def test_what_is_beyond_fp16_is_its_largest_number(kind):
    logits, cache = read(model_with(LARGE, 1e6), (1, 2, LARGE, 3, 4), kind)
    assert logits.isfinite().all()
    layer = cache.layers[0]
    for tensor in layer.tensors if kind == "plain" else layer.newest:
        assert tensor[0, :, 2].abs().max() == FP16_MAX


@pytest.mark.parametrize("kind", ["plain", "int8"])
@torch.inference_mode()
def test_earlier_tokens_do_not_depend_on_it(kind):
    model = model_with(LARGE, 1e6)
    with_it, _ = read(model, (1, 2, LARGE, 3, 4), kind)
    without, _ = read(model, (1, 2, 6, 3, 4), kind)
    assert torch.equal(with_it[:2], without[:2])
    assert not torch.equal(with_it[2:], without[2:])


@here
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", ["plain", "int8"])
@pytest.mark.parametrize("size", [1e6, float("nan")])
def test_later_requests_in_the_same_slots_do_not_depend_on_it(fused, kind, size):
    model = model_with(LARGE, 1e6)
    if size != size:
        model.embed.weight.data[LARGE] = size
    used, fresh = (Engine(model, 2, fused=fused, cache=kind) for _ in range(2))
    earlier = [Request((*EARLIER, *more), 3, GREEDY) for more in ((), (8, 9))]
    if size == size:
        used.generate(earlier)
    else:
        with pytest.raises(NotFinite):
            used.generate(earlier)
    assert events(used) == events(fresh)


def events(engine):
    """Of a short prompt, which decodes beside a long one that came after it."""
    made = []
    engine.add(Request(SHORT, 4, GREEDY))
    made += engine.step()
    engine.add(Request(LONG, 3, GREEDY))
    while engine.busy:
        made += engine.step()
    return [(event.token, event.logprob, event.finish) for event in made]


NAN = ((2, torch.full((192,), float("nan"))),)  # in the place of a token's embedding


def ended(engine, request=None):
    """How the last request ends, and how many tokens it had from the prefix cache."""
    if request is not None:
        engine.add(request)
    made = []
    while engine.busy:
        made += engine.step()
    return made[-1].finish, made[-1].cached


def leave(engine, how):
    """Read a long prompt with NaN in it, in parts, to its end or not."""
    if how == "read":
        return ended(engine, Request((1,) * 60, 3, embeddings=NAN))
    number = engine.add(Request((1,) * 60, 3, embeddings=NAN))
    for _ in range(2):
        engine.step()
    if how == "aborted":
        engine.abort(number)
    elif how == "cleared":
        engine.clear()
    else:
        engine.add(Request((2,) * 3, 1, priority=1))
        engine.step()
        engine.abort(number)
    return ended(engine) if engine.busy else None


@here
@pytest.mark.parametrize("how", ["read", "aborted", "cleared", "given to a higher priority"])
@pytest.mark.parametrize("attention", [{"window": 40}, {}])
@pytest.mark.parametrize("fused", [True, False])
def test_a_prompt_that_was_read_in_parts_leaves_no_nan(how, attention, fused):
    model = TransformerConfig(
        vocabulary=77, width=192, layers=2, context=128, tied=False,
        attention=(GQA(heads=6, kv_heads=2, **attention),),
    ).build(seed=1).eval()  # fmt: skip
    set_precision(model, torch.bfloat16)
    model.dtype = torch.bfloat16
    engine = Engine(model, 2, step_tokens=16, fused=fused)
    leave(engine, how)
    for start in range(6):
        prompts = [tuple(range(start, start + length)) for length in (3, 30)]
        for prompt in prompts:
            engine.add(Request(prompt, 3, GREEDY))
        assert ended(engine) == ("length", 0)


@pytest.mark.parametrize("step_tokens", [None, 16])
def test_blocks_that_an_answer_of_nan_read_are_not_kept(step_tokens):
    """In its forward, NaN of a token reaches the tokens before it, whose weight of it is 0."""
    model = build("many heads", "bf16")
    model.embed.weight.data[LARGE] = float("nan")
    shared = tuple(6 + number % 60 for number in range(33))
    engine = Engine(model, 2, prefix_tokens=256, step_tokens=step_tokens)
    for _ in range(2):
        assert ended(engine, Request((*shared, LARGE, 6, 7), 3, GREEDY)) == ("invalid", 0)
        if step_tokens:
            number = engine.add(Request((*shared, LARGE, *shared[:20]), 3))
            for _ in range(3):
                engine.step()
            engine.abort(number)
    assert ended(engine, Request((*shared, 8, 9), 3, GREEDY)) == ("length", 0)
    assert ended(engine, Request((*shared, 8, 10), 3, GREEDY)) == ("length", 32)
