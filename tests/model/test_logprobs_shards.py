"""Log-probabilities of a part of the vocabulary."""

import pytest
import torch

from culm.model.linear import Linear
from culm.model.logprobs import Kernels, logprobs_of


class Last:
    """The last of two ranks, as if it were alone."""

    start, ranks = 40, 1

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def logsumexp(self, values: torch.Tensor) -> torch.Tensor:
        return values


def test_a_rank_without_any_known_id_is_refused() -> None:
    head, hidden = Linear(8, 40), torch.randn(1, 3, 8)
    torch.nn.init.normal_(head.weight)
    targets = torch.tensor([[41, 50, 44]])
    found = logprobs_of(hidden, head, targets, kernels=Kernels(vocabulary=Last()), vocabulary=60)
    whole = (hidden @ head.weight[:20].t()).log_softmax(-1)
    expected = whole.gather(-1, targets[..., None] - 40)[..., 0]
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="use fewer tensor-parallel ranks"):
        logprobs_of(hidden, head, targets, kernels=Kernels(vocabulary=Last()), vocabulary=30)
