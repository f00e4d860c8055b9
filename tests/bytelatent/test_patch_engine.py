"""Models of patches through the one engine."""

import copy

import pytest
import torch
from patch_models import CONTEXT, TEXT, patch_model, tokens_of

from culm.engine.engine import Engine
from culm.engine.request import Request
from culm.engine.sampling import Sampling
from culm.engine.scoring import rank, score
from culm.model.context import Context

KINDS = ("megabyte", "spacebyte", "blt", "hnet")
GREEDY = Sampling(temperature=0)
PROMPTS = [TEXT[:23], b"a", TEXT[5:51], "東京 ".encode(), TEXT[:23]]


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    return patch_model(request.param)


def requests(tokens: int = 8) -> list[Request]:
    kinds = [GREEDY, Sampling(seed=2), Sampling(temperature=0.6, seed=4), GREEDY, Sampling(seed=9)]
    return [Request(tuple(p), tokens, k) for p, k in zip(PROMPTS, kinds, strict=True)]


def answers(engine: Engine, given: list[Request]) -> list[tuple[int, ...]]:
    return [completion.tokens for completion in engine.generate(given)]


def test_a_batch_equals_single_requests_and_plain_forwards(model):
    together = answers(Engine(model, slots=3), requests())
    assert together == [answers(Engine(model, slots=1), [one])[0] for one in requests()]
    text = list(PROMPTS[0])
    with torch.no_grad():
        for token in together[0]:
            assert int(model(torch.tensor([text]))[0, -1, :262].argmax()) == token
            text.append(token)


def test_prompts_in_parts_equal_whole_ones(model):
    whole = answers(Engine(model, slots=3), requests())
    assert answers(Engine(model, slots=3, step_tokens=9), requests()) == whole


def test_drafts_are_cut_back_and_change_nothing(model):
    given = [Request(tuple(text), 16, GREEDY) for text in (b"abab abab abab ab", TEXT[:30])]
    plain = answers(Engine(model, slots=2), given)
    assert answers(Engine(model, slots=2, speculate="ngram"), given) == plain


def test_no_prefix_is_kept(model):
    engine = Engine(model, slots=2, prefix_tokens=64)
    assert engine.runner.prefix.blocks == 0
    assert engine.runner.prefix.obstacles
    given = requests(3)
    assert answers(engine, given) == answers(Engine(model, slots=2), given)


def test_a_text_up_to_the_context_can_be_written(model):
    given = [Request(tuple(TEXT[:50]), CONTEXT - 50, GREEDY)]
    assert len(answers(Engine(model, slots=1), given)[0]) == CONTEXT - 50


def test_scores_in_parts_equal_those_of_one_forward(model):
    ids = list(TEXT)
    found = rank(model, ids, 2)
    torch.testing.assert_close(found.logprobs, score(model, [ids])[0], atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_activations_in_bf16_decode_like_one_forward(model):
    half = copy.deepcopy(model).bfloat16()
    half.dtype = torch.bfloat16
    ids, cache = tokens_of(TEXT[:30]), half.cache(1, 32)
    half(ids[:, :20], Context(torch.arange(20)[None], cache=cache.view(20)))
    steps = [
        half(ids[:, place : place + 1], Context(torch.tensor([[place]]), cache=cache.view(32)))
        for place in range(20, 30)
    ]
    off = (torch.cat(steps, 1) - half(ids)[:, 20:]).abs()
    assert off.median() < 0.1
