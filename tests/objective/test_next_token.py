"""Next-token prediction and its variants, on a tiny model."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from learning import build, fit, mean
from parity import Difference, Parity, assert_equal
from tiny import model, rows
from torch import Tensor

from culm.batch import IGNORED
from culm.model.transformer import Transformer
from culm.objective.chunks import learned_rows, over_chunks
from culm.objective.next_token import NextToken, noisy_embeddings
from culm.objective.objective import Objective

VARIANTS = [{"dft": True}, {"smoothing": 0.2}, {"z_loss": 0.01}, {"dft": True, "smoothing": 0.1}]


def value(**settings) -> float:
    return float(mean(build(NextToken(**settings), model())(rows()), rows()).detach())


@pytest.mark.parametrize("smoothing", [0.1, 0.5])
def test_smoothing_is_that_of_torch(smoothing: float, parity: Parity) -> None:
    objective = build(NextToken(smoothing=smoothing), model())
    other = model()
    expected = F.cross_entropy(
        other(rows().tokens).flatten(0, 1), rows().targets.flatten(), ignore_index=IGNORED,
        label_smoothing=smoothing,
    )  # fmt: skip
    found = assert_same(objective, other, expected)
    parity.note("next_token", "label smoothing", "PyTorch cross_entropy", found)


def assert_same(objective: Objective, other: Transformer, expected: Tensor) -> Difference:
    """The loss of the rows and the gradients of both models."""

    def gradients() -> Iterator[tuple[str, Tensor | None, Tensor | None]]:
        theirs = dict(other.named_parameters())
        for name, parameter in objective.model.named_parameters():
            yield name, parameter.grad, theirs[name].grad

    return assert_equal(mean(objective(rows()), rows()), expected, gradients)


def test_tokens_weighed_by_their_own_probability() -> None:
    """The gradient of p log p with p held fixed."""
    objective, other = build(NextToken(dft=True), model()), model()
    logprobs = other.logprobs(rows().tokens, rows().targets)
    learned = rows().targets >= 0
    expected = -(logprobs * logprobs.detach().exp())[learned].mean()
    metrics = objective(rows()).metrics
    assert float(metrics["nll"].total) == pytest.approx(-float(logprobs.sum().detach()), abs=1e-3)
    assert_same(objective, other, expected)


def test_large_denominators_cost(parity: Parity) -> None:
    objective, other = build(NextToken(z_loss=0.01), model()), model()
    learned = (rows().targets >= 0).flatten()
    logits = other(rows().tokens).flatten(0, 1)[learned]
    plain = F.cross_entropy(logits, rows().targets.flatten()[learned])
    expected = plain + 0.01 * logits.logsumexp(-1).square().mean()
    parity.note("next_token", "z-loss", "definition", assert_same(objective, other, expected))


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_a_step_does_not_depend_on_how_it_is_cut(settings: dict) -> None:
    def run(at: list[int]) -> tuple[float, float]:
        parts = [rows().select(torch.arange(*pair)) for pair in itertools.pairwise(at)]
        (step,) = fit(build(NextToken(**settings), model()), parts)
        return step.loss, step.grad_norm

    whole = run([0, 8])
    for at in ([0, 1, 8], [0, 3, 4, 8]):
        assert run(at) == pytest.approx(whole, rel=1e-5)


def test_chunks_are_computed_again_and_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("culm.objective.chunks.CHUNK", 5)
    hidden = torch.randn(8, 12, 4, requires_grad=True)
    calls: list[int] = []

    def compute(part: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(len(part))
        return part.square().sum(), part.sum()

    squares, _ = over_chunks(compute, learned_rows(rows().targets), hidden)
    count = int(rows().counts["targets"])
    assert calls == [*[5] * (count // 5), count % 5]
    squares.backward()
    assert len(calls) == 2 * (-(-count // 5))
    learned = (rows().targets >= 0)[..., None]
    torch.testing.assert_close(hidden.grad, 2 * hidden.detach() * learned)
    nothing = over_chunks(compute, learned_rows(torch.full((8, 12), IGNORED)), hidden)
    assert [float(one) for one in nothing] == [0.0, 0.0]


def noise(batch, size: float = 5.0) -> Tensor:
    given = model().train()
    with torch.no_grad():
        plain = given.embed(batch.tokens)
        with noisy_embeddings(given, batch, size):
            return (given.embed(batch.tokens) - plain) / size


def test_noise_of_embeddings_has_the_size_of_the_paper() -> None:
    """+-1 / sqrt(L E): by the real length of each sample, not by that of the padded batch."""
    width = model().config.width
    batch = rows()
    assert batch.lengths is not None
    found = torch.cat([noise(batch) for _ in range(200)], 1).view(8, 200, 12, width)
    for row, length in enumerate(batch.lengths.tolist()):
        bound = (length * width) ** -0.5
        assert float(found[row].abs().max()) == pytest.approx(bound, rel=0.01)
        assert float(found[row].std()) == pytest.approx(bound / 3**0.5, rel=0.02)


def test_documents_of_a_packed_row_have_noise_of_their_own_length() -> None:
    width = model().config.width
    documents = torch.tensor([[0] * 3 + [1] * 9]).int()
    batch = replace(rows().select(torch.tensor([2])), documents=documents)
    found = torch.cat([noise(batch) for _ in range(200)])
    for part, length in ((found[:, :3], 3), (found[:, 3:], 9)):
        assert float(part.abs().max()) == pytest.approx((length * width) ** -0.5, rel=0.01)


def test_noise_is_for_training_alone_and_leaves_nothing_behind() -> None:
    torch.manual_seed(0)
    objective = build(NextToken(neftune=5.0), model())
    first, second = (float(mean(objective(rows()), rows()).detach()) for _ in range(2))
    assert first != second
    assert not objective.model.embed._forward_hooks
    objective.eval()
    assert float(mean(objective(rows()), rows()).detach()) == pytest.approx(value(), abs=1e-6)
