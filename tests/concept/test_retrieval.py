"""Ranks of predicted concepts: what predicts nothing earns nothing."""

import pytest
import torch

from culm.concept.retrieval import ranks

TRUTH = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))


def test_the_true_concept_is_first_and_a_rank_is_counted_by_hand() -> None:
    assert ranks(TRUTH, TRUTH).values.tolist() == [1] * 100
    truth = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    predicted = torch.tensor([[0.0, 1.0], [0.8, 0.6], [1.0, 1.0]])
    # The last one is as near to the first: the worst order.
    assert ranks(predicted, truth).values.tolist() == [3, 1, 3]


@pytest.mark.parametrize(
    "predicted",
    [torch.full_like(TRUTH, torch.nan), torch.zeros_like(TRUTH)],
    ids=["no numbers", "zero"],
)
def test_a_prediction_that_tells_nothing_ranks_last(predicted: torch.Tensor) -> None:
    found = ranks(predicted, TRUTH)
    assert found.values.tolist() == [100] * 100
    assert found.contrastive == 0


def test_concepts_that_coincide_rank_last() -> None:
    found = ranks(TRUTH, torch.ones_like(TRUTH))
    assert found.mrr == pytest.approx(0.01)
    assert found.recall(10) == 0
