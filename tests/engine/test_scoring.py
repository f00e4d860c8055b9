"""Scores of given ids: the model's own, however sequences are batched."""

import copy

import pytest
import torch

from culm.adapt.lora import LoRA, adapters_of
from culm.adapt.multi_lora import attach_adapters
from culm.engine import scoring
from culm.engine.engine import Engine
from culm.engine.request import Request
from culm.engine.sampling import Sampling


def sequences() -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    lengths = [9, 2, 40, 1, 40, 3, 96, 17]
    return [torch.randint(0, 61, (n,), generator=generator).tolist() for n in lengths]


def exact(model, ids: list[int]) -> torch.Tensor:
    """One by one, from the logits."""
    with torch.no_grad():
        logprobs = model(torch.tensor([ids]))[0, :-1].log_softmax(-1)
    return logprobs.gather(-1, torch.tensor(ids[1:], dtype=torch.int64)[:, None])[:, 0]


@pytest.mark.parametrize("limit", [1, 100, 8192])
def test_scores_are_those_of_one_sequence_at_a_time(model, monkeypatch, limit: int) -> None:
    monkeypatch.setattr(scoring, "FORWARD_TOKENS", limit)
    found = Engine(model).score(sequences())
    for ids, scores in zip(sequences(), found, strict=True):
        assert scores.shape == (len(ids) - 1,)
        assert scores.dtype == torch.float32
        assert not scores.requires_grad
        torch.testing.assert_close(scores, exact(model, ids), atol=1e-4, rtol=1e-5)


def test_similar_lengths_share_a_forward(model, monkeypatch) -> None:
    shapes = []

    def counted(self, tokens, targets, context):
        shapes.append(tuple(tokens.shape))
        return torch.zeros(tokens.shape)

    monkeypatch.setattr(scoring, "FORWARD_TOKENS", 200)
    monkeypatch.setattr(type(model), "logprobs", counted)
    Engine(model).score(sequences())
    assert shapes == [(5, 39), (2, 95)]


def test_generated_tokens_score_as_when_they_were_sampled(model) -> None:
    done = Engine(model).generate([Request((5, 6, 7), 20, Sampling(seed=1))])[0]
    scores = Engine(model).score([(5, 6, 7, *done.tokens)])[0]
    assert done.logprobs == pytest.approx(scores[2:].tolist(), abs=1e-4)


def test_scoring_leaves_running_requests_alone(model) -> None:
    request = Request((5, 6, 7), 20, Sampling(seed=1))
    engine = Engine(model, 1)
    engine.add(request)
    tokens = []
    while engine.busy:
        tokens += [event.token for event in engine.step()]
        engine.score(sequences()[:3])
    assert tuple(tokens) == Engine(model).generate([request])[0].tokens


def test_each_sequence_has_its_adapter(model) -> None:
    base, other = copy.deepcopy(model), copy.deepcopy(model)
    LoRA(rank=4).apply(other, 0)
    for layer in adapters_of(other).values():
        torch.nn.init.normal_(layer.b, std=0.3)
    attach_adapters(base, {"first": adapters_of(other)})
    ids = [3, 9, 27, 4]
    plain, adapted = Engine(base).score([ids, ids], [None, "first"])
    torch.testing.assert_close(plain, exact(model, ids), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(adapted, exact(other, ids), atol=1e-3, rtol=1e-4)
    assert not torch.allclose(plain, adapted, atol=1e-2)
    with pytest.raises(ValueError, match="poem"):
        Engine(base).score([ids], ["poem"])


def test_ranks_of_a_sequence(model) -> None:
    ids = [3, 9, 27, 4, 4]
    found = scoring.rank(model, ids, 3)
    torch.testing.assert_close(found.logprobs, exact(model, ids), atol=1e-5, rtol=0)
    with torch.no_grad():
        best = model(torch.tensor([ids]))[0, :-1].log_softmax(-1).topk(3)
    assert torch.equal(found.tokens, best.indices)
    torch.testing.assert_close(found.values, best.values)
    assert scoring.rank(model, [3], 3).tokens.shape == (0, 3)


def test_ranks_in_steps_are_those_of_one_forward(model, monkeypatch) -> None:
    monkeypatch.setattr(scoring, "STEP_TOKENS", 16)
    for ids in sequences():
        parts = list(Engine(model).rank_in_steps(ids, 2))
        assert all(len(part.logprobs) <= 16 for part in parts)
        found = scoring.joined(parts)
        torch.testing.assert_close(found.logprobs, exact(model, ids), atol=1e-5, rtol=0)
        assert found.values.shape == (len(ids) - 1, 2)


@pytest.mark.parametrize(
    ("ids", "words"),
    [([[1], []], "empty"), ([[1, 61]], "token 61 is outside"), ([[-1]], "token -1")],
)
def test_what_cannot_be_scored_is_refused(model, ids, words) -> None:
    with pytest.raises(ValueError, match=f"ids: .*{words}"):
        Engine(model).score(ids)
    with pytest.raises(ValueError, match="adapters: 1 are given for 2 sequences"):
        Engine(model).score([[1], [2]], [None])
    assert Engine(model).score([]) == []
