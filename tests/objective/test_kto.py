"""Answers that are called good or bad, on a tiny model."""

import itertools
from dataclasses import replace

import pytest
import torch
from learning import build, fit, mean
from parity import Parity
from tiny import model, rows
from torch import Tensor, tensor

from culm.batch import Batch
from culm.config import SettingError
from culm.objective.kto import KTO, KTOObjective, kto_loss, mismatched
from culm.objective.objective import Objective
from culm.parallel.ranks import Ranks

LABELS = tensor([1.0, 0, 1, 1, 0, 1, 0, 1])
CUTS = [[0, 8], [0, 1, 8], [0, 3, 4, 8], list(range(9))]


def sequences() -> Batch:
    """The fixed rows as texts: each target is the next token."""
    batch = rows()
    tokens = batch.tokens.clone()
    tokens[:, 1:] = tokens[:, 1:].where(batch.targets[:, :-1] < 0, batch.targets[:, :-1])
    return replace(batch, tokens=tokens)


def labelled(at: list[int], labels: Tensor = LABELS) -> list[Batch]:
    """The rows in micro-batches."""
    whole = replace(sequences(), extra={"label": labels})
    return [whole.select(torch.arange(start, end)) for start, end in itertools.pairwise(at)]


def moved(config: KTO | None = None) -> KTOObjective:
    """An objective whose policy is no longer its reference."""
    objective = build(config or KTO(beta=0.3), model())
    objective.model.load_state_dict(model(seed=2).state_dict())
    assert isinstance(objective, KTOObjective)
    return objective


def test_golden(parity: Parity) -> None:
    chosen, rejected = tensor([1.0, 0.5]).double(), tensor([-0.5, 0.5]).double()
    divergence = torch.full((2,), 0.3, dtype=torch.float64)
    good = torch.ones(2, dtype=torch.bool)
    found = kto_loss(chosen, divergence, good, KTO()).tolist()
    parity.golden("kto", "KTO", found, [0.48250714, 0.49500017])
    found = kto_loss(rejected, divergence, ~good, KTO()).tolist()
    parity.golden("kto", "KTO", found, [0.48001066, 0.50499983])
    weighted = kto_loss(rejected, divergence, ~good, KTO(undesirable=2.0)).tolist()
    assert weighted == pytest.approx([0.96002132, 1.00999966], abs=1e-7)


def test_the_loss_begins_at_a_half() -> None:
    objective = build(KTO(), model())
    (batch,) = objective.prepare_step(labelled([0, 8]), 0, Ranks())
    assert batch.metrics["kl"] == 0
    loss = objective(batch)
    assert float(mean(loss, batch).detach()) == pytest.approx(0.5, abs=1e-7)
    assert float(loss.metrics["reward_desirable"].total) == 0


def test_a_step_does_not_depend_on_how_it_is_cut() -> None:
    def run(at: list[int]) -> tuple[float, float, dict, dict[str, Tensor]]:
        objective = moved()
        batches = objective.prepare_step(labelled(at), 0, Ranks())
        (step,) = fit(objective, batches)
        weights = {name: p.detach().clone() for name, p in objective.named_parameters()}
        return step.loss, step.grad_norm, dict(step.metrics), weights

    whole = run(CUTS[0])
    assert whole[2]["kl"] > 0
    for at in CUTS[1:]:
        loss, norm, metrics, weights = run(at)
        assert (loss, norm) == pytest.approx(whole[:2], rel=1e-5)
        assert metrics == pytest.approx(whole[2], abs=1e-5)
        for name, weight in whole[3].items():
            torch.testing.assert_close(weights[name], weight, atol=1e-5, rtol=1e-4)


def test_the_divergence_is_that_of_answers_to_other_questions() -> None:
    """Row by row, without padding, from the definition."""
    objective, whole = moved(), sequences()
    starts = [int((targets >= 0).nonzero()[0]) for targets in whole.targets]
    assert whole.lengths is not None
    ends = whole.lengths.tolist()
    total = 0.0
    for row, end in enumerate(starts):
        other = (row - 1) % 8
        answer = whole.targets[other, starts[other] : ends[other]]
        ids = torch.cat([whole.tokens[row, : end + 1], answer])
        for part, sign in ((objective.model, 1), (objective.reference, -1)):
            logits = part(ids[None, :-1])[0].log_softmax(-1)[end:]
            total += sign * float(logits.gather(1, answer[:, None]).sum().detach())
    for at in CUTS:
        found = objective.prepare_step(labelled(at), 0, Ranks())
        assert found[0].metrics["kl"] == pytest.approx(max(total / 8, 0.0), abs=1e-4)
        assert all((part.extra["divergence"] == found[0].metrics["kl"]).all() for part in found)


def test_mismatched_rows_are_cut_to_the_context() -> None:
    for batch in mismatched(labelled([0, 8]), 5, Ranks()):
        assert batch.tokens.shape[1] <= 5
        assert batch.targets.shape == batch.tokens.shape


def test_an_answer_alone_is_compared_with_no_other() -> None:
    """Its own log-ratio would always be cancelled."""
    with pytest.raises(SettingError, match=r"train\.batch_size: kto compares the answers"):
        moved().prepare_step(labelled([0, 1]), 0, Ranks())


@pytest.mark.parametrize("label", [0.5, 3.0, -2.0])
def test_other_labels_are_refused(label: float) -> None:
    labels = LABELS.clone()
    labels[3] = label
    objective: Objective = moved()
    with pytest.raises(SettingError, match=r"data\.format\.label: kto learns from true and false"):
        objective.prepare_step(labelled([0, 4, 8], labels), 0, Ranks())


def test_good_answers_become_likelier_and_bad_ones_less() -> None:
    objective = build(KTO(beta=0.5), model())

    def scores() -> Tensor:
        whole = sequences()
        return objective.model.logprobs(whole.tokens, whole.targets).sum(-1).detach()

    before = scores()
    optimizer = torch.optim.Adam(objective.model.parameters(), lr=3e-3)
    for _ in range(20):
        fit(objective, objective.prepare_step(labelled([0, 8]), 0, Ranks()), optimizer=optimizer)
    change, good = scores() - before, LABELS > 0
    assert change[good].mean() > 0 > change[~good].mean()
