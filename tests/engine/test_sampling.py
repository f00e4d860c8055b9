import math
from collections import Counter

import numpy as np
import pytest
import torch

from culm.engine.sampling import Sampling, TokenSampler, invert, penalize, truncate, uniforms

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0])


def kept(sampling: Sampling, logits: torch.Tensor = LOGITS) -> list[int]:
    left = truncate(logits[None] / (sampling.temperature or 1), [sampling])[0]
    return left.isfinite().nonzero()[:, 0].tolist()


def test_golden_probabilities():
    # methods sheet, section 10.1
    golden = [0.563021, 0.207124, 0.125627, 0.076197, 0.028031]
    assert LOGITS.softmax(-1).tolist() == pytest.approx(golden, abs=1e-6)
    assert kept(Sampling(top_p=0.8)) == [0, 1, 2]
    assert kept(Sampling(min_p=0.2)) == [0, 1, 2]
    left = truncate(LOGITS[None], [Sampling(min_p=0.2)]).softmax(-1)[0, :3]
    assert left.tolist() == pytest.approx([0.628532, 0.231224, 0.140244], abs=1e-6)
    changed = penalize(LOGITS, Sampling(repetition_penalty=1.2), [0], [4])
    assert changed.tolist() == pytest.approx([1.666667, 1, 0.5, 0, -1.2], abs=1e-6)


def test_penalties_of_openai_count_generated_tokens_only():
    sampling = Sampling(presence_penalty=0.5, frequency_penalty=0.25, bias=((3, 2.0),))
    changed = penalize(LOGITS, sampling, prompt=[1, 1], output=[0, 0, 2])
    assert changed.tolist() == pytest.approx([1.0, 1.0, -0.25, 2.0, -1.0])


def test_top_k_keeps_ties_and_top_p_at_least_one():
    tied = torch.tensor([1.0, 3.0, 1.0, 1.0, 0.0])
    assert kept(Sampling(top_k=2), tied) == [0, 1, 2, 3]
    assert kept(Sampling(top_k=99), tied) == [0, 1, 2, 3, 4]
    assert kept(Sampling(top_p=0.0)) == [0]
    assert kept(Sampling(min_p=1.0)) == [0]


def test_rows_of_a_batch_keep_their_own_truncation():
    rows = [
        Sampling(), Sampling(top_k=2), Sampling(top_p=0.8), Sampling(min_p=0.2),
        Sampling(typical_p=0.5),
    ]  # fmt: skip
    left = truncate(LOGITS.expand(5, -1), rows).isfinite().sum(-1)
    assert left.tolist() == [5, 2, 3, 3, 2]


def test_typical_sampling_drops_what_says_too_little_too() -> None:
    """A token that is almost sure is farther from the entropy than one that is fairly likely."""
    logits = torch.tensor([0.4, 0.15, 0.15, 0.15, 0.15]).log()
    assert kept(Sampling(typical_p=0.5), logits) == [1, 2, 3, 4]
    assert kept(Sampling(typical_p=0.0)) == [1]
    assert kept(Sampling(typical_p=1.0)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("size", [1, 7, 500])
def test_truncation_equals_transformers(size):
    processors = pytest.importorskip("transformers.generation.logits_process")
    logits = torch.randn(6, size, generator=torch.Generator().manual_seed(size)) * 2
    k, p, m = min(5, size), 0.85, 0.07
    for sampling, peer in (
        (Sampling(top_k=k), processors.TopKLogitsWarper(k)),
        (Sampling(top_p=p), processors.TopPLogitsWarper(p)),
        (Sampling(min_p=m), processors.MinPLogitsWarper(m)),
        (Sampling(typical_p=0.2), processors.TypicalLogitsWarper(0.2)),
        (Sampling(typical_p=0.9), processors.TypicalLogitsWarper(0.9)),
    ):
        torch.testing.assert_close(
            truncate(logits, [sampling] * 6), peer(None, logits), atol=1e-6, rtol=0
        )
    seen = torch.randint(0, size, (6, 4), generator=torch.Generator().manual_seed(0))
    peer = processors.RepetitionPenaltyLogitsProcessor(1.3)(seen, logits.clone())
    ours = [
        penalize(row, Sampling(repetition_penalty=1.3), ids.tolist(), [])
        for row, ids in zip(logits, seen, strict=True)
    ]
    torch.testing.assert_close(torch.stack(ours), peer, atol=1e-6, rtol=0)


def test_the_complete_chain_equals_transformers():
    processors = pytest.importorskip("transformers.generation.logits_process")
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(4)) * 3
    chain = processors.LogitsProcessorList(
        [
            processors.TemperatureLogitsWarper(0.7),
            processors.TopKLogitsWarper(40),
            processors.TopPLogitsWarper(0.9),
            processors.MinPLogitsWarper(0.05),
            processors.TypicalLogitsWarper(0.6),
        ]
    )
    sampling = Sampling(temperature=0.7, top_k=40, top_p=0.9, min_p=0.05, typical_p=0.6)
    ours = truncate(logits / 0.7, [sampling] * 4)
    torch.testing.assert_close(ours, chain(None, logits), atol=1e-6, rtol=0)


def test_greedy_takes_the_lowest_of_equals():
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.0], [5.0, 5.0, 5.0, 5.0]])
    tokens, logprobs = TokenSampler([Sampling(temperature=0)] * 2, [1, 2])(
        logits, [[0]] * 2, [[]] * 2
    )
    assert tokens.tolist() == [1, 0]
    assert logprobs.tolist() == pytest.approx(logits.log_softmax(-1)[[0, 1], [1, 0]].tolist())


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_samples_follow_the_distribution(temperature):
    count, golden = 20_000, (LOGITS.double() / temperature).softmax(-1)
    rows = [Sampling(temperature=temperature)] * 100
    seen: Counter[int] = Counter()
    for step in range(count // 100):  # both seeds and counts vary, as they do in use
        sampler = TokenSampler(rows, range(100))
        seen.update(sampler(LOGITS.expand(100, -1), [[0]] * 100, [[0] * step] * 100)[0].tolist())
    chi = sum((seen[i] - count * float(p)) ** 2 / (count * float(p)) for i, p in enumerate(golden))
    assert chi < 18.5  # 4 degrees of freedom, p = 0.001


def test_uniform_numbers_are_uniform_and_keyed():
    seeds = np.arange(1000, dtype=np.uint64)
    numbers = uniforms(seeds, np.zeros(1000, np.uint64))
    assert abs(numbers.mean() - 0.5) < 0.03
    assert abs(numbers.var() - 1 / 12) < 0.01
    assert 0 <= numbers.min() <= numbers.max() < 1
    one = uniforms(seeds[17:18], np.zeros(1, np.uint64))
    assert one[0] == numbers[17]
    steps = uniforms(np.full(1000, 7, np.uint64), np.arange(1000, dtype=np.uint64))
    assert abs(np.corrcoef(steps[:-1], steps[1:])[0, 1]) < 0.1


def test_a_token_of_probability_zero_is_never_sampled():
    chances = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]])
    ends = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert invert(chances.expand(3, -1), ends).tolist() == [1, 3, 3]


def test_samples_do_not_depend_on_the_rest_of_the_batch():
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    rows, seeds = [Sampling(top_p=0.9)] * 5, [9, 8, 7, 6, 5]
    together = TokenSampler(rows, seeds)(logits, [[0]] * 5, [[1] * i for i in range(5)])[0]
    alone = TokenSampler(rows[3:4], seeds[3:4])(logits[3:4], [[0]], [[1] * 3])[0]
    assert together[3] == alone[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("top_k", -1),
        ("top_p", 1.1),
        ("min_p", -0.5),
        ("typical_p", 1.5),
        ("repetition_penalty", 0.0),
        ("presence_penalty", 3.0),
        ("frequency_penalty", -3.0),
        ("bias", ((0, math.inf),)),
    ],
)
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=f"^{name}: "):
        Sampling(**{name: value})
