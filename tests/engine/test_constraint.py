"""Answers keep to their constraint, wherever their tokens are sampled."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from culm.engine.constraint import OneOf
from culm.engine.engine import Engine
from culm.engine.request import Request
from culm.engine.sampling import Sampling
from culm.model.attention.gqa import GQA
from culm.model.mtp import MTP
from culm.model.transformer import Transformer, TransformerConfig

WORDS = 61
ANSWERS = ((7, 8, 9), (7, 8, 3, 3, 4), (20,), (33, 34, 35, 36))
SAMPLINGS = {
    "greedy": Sampling(temperature=0),
    "sampled": Sampling(seed=3),
    "hot": Sampling(temperature=50.0, seed=4),
    "truncated": Sampling(temperature=2.0, top_k=3, top_p=0.5, min_p=0.2, seed=5),
    "penalties": Sampling(seed=6, repetition_penalty=1.5, frequency_penalty=1, bias=((50, 90.0),)),
}


@dataclass(frozen=True)
class Even:
    """Even ids alone, as a mask over the vocabulary."""

    size: int = WORDS
    failure: ClassVar[None] = None

    def mask(self, output: Sequence[int]) -> torch.Tensor:
        return torch.arange(self.size) % 2 == 0


@pytest.fixture(scope="module")
def heads() -> Transformer:
    """A model with heads of multi-token prediction, whose choices are clear."""
    torch.set_num_threads(1)
    model = TransformerConfig(
        vocabulary=WORDS, width=32, layers=2, context=96, attention=GQA(heads=2), mtp=MTP(depth=2)
    ).build(seed=3)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(8)
    return model.eval()


@pytest.mark.parametrize("speculate", [None, "mtp", "ngram"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_an_answer_is_one_of_the_given(heads, sampling, speculate) -> None:
    """Alone and in a batch with others, which stay as they are without it."""
    settings = SAMPLINGS[sampling]
    bound = [Request((n, 7, 8, 7, 8), 12, settings, constraint=OneOf(ANSWERS)) for n in range(6)]
    free = [Request((n, 7, 8, 7, 8), 12, settings) for n in range(6)]
    mixed = [request for pair in zip(bound, free, strict=True) for request in pair]
    done = Engine(heads, 4, speculate=speculate).generate(mixed)
    for completion in done[::2]:
        assert completion.tokens in ANSWERS
        assert completion.finish == "complete"
    alone = Engine(heads, 4, speculate=speculate).generate(free)
    assert [c.tokens for c in done[1::2]] == [c.tokens for c in alone]
    plain = Engine(heads, 1).generate(mixed)
    assert [c.tokens for c in done] == [c.tokens for c in plain]
    assert any(completion.tokens not in ANSWERS for completion in done[1::2])


def test_every_answer_can_be_sampled_with_its_probability(heads) -> None:
    """By the model's own probabilities among what is allowed at each place."""
    answers = ((4, 5), (4, 6), (9,))
    rules = OneOf(answers)
    count = 400
    wanted = [
        Request((1, 2), 4, Sampling(temperature=6.0, seed=n), constraint=rules)
        for n in range(count)
    ]
    said = [completion.tokens for completion in Engine(heads, 64).generate(wanted)]
    with torch.no_grad():
        first = (heads(torch.tensor([[1, 2]]))[0, -1] / 6)[[4, 9]].softmax(-1)
        second = (heads(torch.tensor([[1, 2, 4]]))[0, -1] / 6)[[5, 6]].softmax(-1)
    shares = (first[0] * second[0], first[0] * second[1], first[1])
    for answer, share in zip(answers, shares, strict=True):
        error = (float(share) * (1 - float(share)) / count) ** 0.5
        assert abs(said.count(answer) / count - float(share)) < 4 * error + 1e-9


def test_log_probabilities_are_those_of_the_model_alone(heads) -> None:
    done = Engine(heads).generate([Request((1, 2), 8, Sampling(seed=1), constraint=OneOf(ANSWERS))])
    tokens = (1, 2, *done[0].tokens)
    exact = Engine(heads).score([tokens])[0][1:]
    assert done[0].logprobs == pytest.approx(exact.tolist(), abs=1e-4)


@pytest.mark.parametrize("speculate", [None, "mtp", "ngram"])
def test_a_mask_over_the_vocabulary(heads, speculate) -> None:
    request = Request((3, 5, 3, 5), 30, Sampling(seed=2), constraint=Even())
    done = Engine(heads, speculate=speculate).generate([request])[0]
    assert len(done.tokens) == 30
    assert done.finish == "length"
    assert all(token % 2 == 0 for token in done.tokens)
    free = Engine(heads).generate([Request((3, 5, 3, 5), 30, Sampling(seed=2))])[0]
    assert any(token % 2 for token in free.tokens)  # its control


def test_a_stop_token_may_follow_an_answer_that_goes_on(heads) -> None:
    rules = OneOf(((7,), (7, 8)), end=frozenset({0}))
    said = set()
    for seed in range(40):
        request = Request((1,), 5, Sampling(20.0, seed=seed), frozenset({0}), constraint=rules)
        done = Engine(heads).generate([request])[0]
        assert done.finish == "stop"
        said.add(done.tokens)
    assert said == {(7, 0), (7, 8, 0)}


def test_max_tokens_end_an_answer_early(heads) -> None:
    request = Request((1,), 2, Sampling(seed=1), constraint=OneOf(((7, 8, 9),)))
    done = Engine(heads).generate([request])[0]
    assert (done.tokens, done.finish) == ((7, 8), "length")


@pytest.mark.parametrize("sequences", [(), ((),), ((7,), (7, 8))])
def test_answers_that_contradict_each_other_are_refused(sequences) -> None:
    with pytest.raises(ValueError, match=r"^constraint: "):
        OneOf(sequences)


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (OneOf(((WORDS,),)), "token 61 is outside the vocabulary of 61"),
        (OneOf(((-1,),)), "token -1 is outside"),
        (Even(0), "allows no first token"),
    ],
)
def test_constraints_that_cannot_be_met_are_refused(heads, rules, words) -> None:
    with pytest.raises(ValueError, match=words):
        Engine(heads).add(Request((1,), 4, constraint=rules))
