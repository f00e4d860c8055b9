"""Objectives on a tiny model: sums that do not depend on how a step is cut."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from learning import build, fit, mean
from parity import Parity, assert_equal
from tiny import LENGTHS, experience, model, rows
from torch import nn

from culm.adapt.lora import LoRA
from culm.batch import IGNORED, Batch, Loss, counts_of
from culm.objective.grpo import GRPO, VARIANTS
from culm.objective.next_token import NextToken
from culm.objective.policy import inference_context
from culm.objective.preference import FORMS, Preference
from culm.train.events import Stepped
from culm.train.judge import TrainingError


def paired(batch: Batch) -> Batch:
    """The same with the count of its pairs."""
    return replace(batch, counts={**batch.counts, "pairs": len(batch.tokens) / 2})


REWARDS = torch.tensor([1.0, 0, 0, 1, 1, 0, 0, 0])


def total(loss: Loss) -> torch.Tensor:
    """The sum of all terms, undivided."""
    return torch.stack([term.total for term in loss.terms.values()]).sum()


def cut(batch: Batch, at: list[int]) -> list[Batch]:
    """Rows at[i]..at[i + 1], each part only as long as its longest row, as a loader makes them."""
    parts = []
    for start, end in itertools.pairwise(at):
        length = max(LENGTHS[start:end])
        targets = batch.targets[start:end, :length]
        lengths = torch.tensor(LENGTHS[start:end])
        part = replace(
            batch,
            tokens=batch.tokens[start:end, :length],
            targets=targets,
            positions=batch.positions[start:end, :length],
            lengths=lengths,
            counts=counts_of(targets, lengths),
        )
        parts.append(part)
    return parts


def one_step(objective: nn.Module, batches: list[Batch]) -> tuple[Stepped, dict[str, torch.Tensor]]:
    """The facts of one step, and the weights after plain gradient descent: the gradients."""
    (step,) = fit(objective, batches)
    return step, {n: p.detach().clone() for n, p in objective.named_parameters()}


def assert_same(a: tuple[Stepped, dict], b: tuple[Stepped, dict]) -> None:
    assert b[0].loss == pytest.approx(a[0].loss, rel=2e-6, abs=1e-6)
    assert b[0].grad_norm == pytest.approx(a[0].grad_norm, rel=1e-5)
    assert b[0].tokens == a[0].tokens == sum(LENGTHS)
    assert b[0].metrics == pytest.approx(a[0].metrics, abs=1e-5)
    for name, weight in a[1].items():
        torch.testing.assert_close(b[1][name], weight, atol=1e-5, rtol=1e-4)


def test_next_token_accumulated_is_whole() -> None:
    whole = one_step(build(NextToken(), model()), [rows()])
    mean = nn.functional.cross_entropy(
        model()(rows().tokens).flatten(0, 1), rows().targets.flatten(), ignore_index=IGNORED
    )
    assert whole[0].loss == pytest.approx(mean.item(), abs=1e-5)
    for at in ([0, 1, 8], [0, 3, 4, 8], list(range(9))):
        assert_same(whole, one_step(build(NextToken(), model()), cut(rows(), at)))


@pytest.mark.parametrize("settings", [*({"loss": name} for name in FORMS), {"tail": 0.3}])
def test_preference_accumulated_is_whole(settings: dict) -> None:
    def objective() -> nn.Module:
        built = build(Preference(**settings), model())
        built.model.load_state_dict(model(seed=1).state_dict())  # the reference stays at seed 0
        return built

    def pairs(at: list[int]) -> list[Batch]:
        return [paired(b) for b in cut(rows(), at)]

    whole = one_step(objective(), pairs([0, 8]))
    for at in ([0, 2, 8], [0, 2, 4, 6, 8]):
        assert_same(whole, one_step(objective(), pairs(at)))


MORE = [
    {"kl": 0.3}, {"kl": 0.3, "kl_estimate": "k2"}, {"correction": "token"},
    {"correction": "sequence"}, {"correction": "mask"}, {"dual_clip": 3.0},
]  # fmt: skip


@pytest.mark.parametrize(
    "settings", [*({"variant": name} for name in VARIANTS), *MORE], ids=lambda one: str(one)
)
@pytest.mark.parametrize("updates", [1, 2])
def test_grpo_accumulated_is_whole(settings: dict, updates: int) -> None:
    """Also where the policy is no longer the one that sampled, nor its reference."""
    rewards = torch.tensor([1.0, 0, 0, 1, 0.5, 0, 0, 0])

    def run(at: list[int]) -> tuple[Stepped, dict]:
        objective = build(GRPO(**settings), model())
        if objective.config.kl:
            objective.model.load_state_dict(model(seed=1).state_dict())
        played = experience(rewards, group=2, max_tokens=16)
        whole = objective.prepare(replace(played, updates=updates))
        if updates > 1:
            objective.model.load_state_dict(model(seed=2).state_dict())
        spans = [torch.arange(start, end) for start, end in itertools.pairwise(at)]
        return one_step(objective, [whole.select(span) for span in spans])

    whole = run([0, 8])
    assert whole[0].metrics["reward"] == 0.25
    for at in ([0, 2, 8], [0, 2, 4, 6, 8]):
        assert_same(whole, run(at))


@pytest.mark.parametrize("variant", VARIANTS)
def test_grpo_begins_with_ratio_one_and_no_divergence(variant: str) -> None:
    """So the gradient of every variant is that of its advantages times log pi."""
    objective = build(GRPO(variant=variant), model())  # type: ignore[arg-type]
    batch = objective.prepare(replace(experience(REWARDS, group=4, max_tokens=6), updates=2))
    loss = objective(batch)
    learned = batch.targets >= 0
    assert loss.metrics["clip_fraction"].total == 0
    assert batch.metrics.get("kl", 0.0) == 0
    total(loss).backward()
    found = [p.grad.clone() for p in objective.model.parameters() if p.grad is not None]
    objective.zero_grad()
    logprobs = objective.model.logprobs(batch.tokens, batch.targets)
    weights = batch.extra["advantages"] * batch.extra["scales"][:, None] * learned
    if objective.config.ratio == "sequence":  # a mean over the tokens, for each of them
        lengths = learned.sum(1, keepdim=True)
        weights = weights.sum(1, keepdim=True) / lengths * learned
    if objective.config.ratio == "product":
        weights = weights.sum(1, keepdim=True) * learned
    (-logprobs * weights).sum().backward()
    expected = [p.grad for p in objective.model.parameters() if p.grad is not None]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_settings_of_a_variant_can_be_set_apart() -> None:
    assert GRPO(variant="dapo").clip_high == 0.28
    assert GRPO(variant="dapo", clip_high=0.3).clip_high == 0.3
    assert (GRPO(variant="drgrpo").scale, GRPO(variant="drgrpo").average) == ("none", "constant")
    assert [GRPO(variant=name).least_group for name in ("rloo", "reinforce++")] == [2, 1]
    with pytest.raises(ValueError, match=r"dual_clip: 1\.1 is not above 1 \+ clip_high"):
        GRPO(dual_clip=1.1)


def test_a_token_is_charged_for_the_divergence_of_what_follows() -> None:
    objective = build(GRPO(baseline="none", scale="none", kl=0.5, kl_in="token_reward"), model())
    objective.model.load_state_dict(model(seed=1).state_dict())
    batch = objective.prepare(experience(REWARDS, group=1))
    context = inference_context(rows())
    with torch.no_grad():
        away = objective.model.logprobs(
            rows().tokens, rows().targets, context
        ) - objective.reference.logprobs(rows().tokens, rows().targets, context)
    for row in range(8):
        places = (rows().targets[row] >= 0).nonzero()[:, 0].tolist()
        for number, place in enumerate(places):
            wanted = REWARDS[row] - 0.5 * away[row, places[number:]].sum()
            assert float(batch.extra["advantages"][row, place]) == pytest.approx(
                float(wanted), abs=1e-4
            )
    whole = build(GRPO(kl=0.5, kl_in="reward", scale="none", baseline="none"), model())
    whole.model.load_state_dict(model(seed=1).state_dict())
    given = whole.prepare(experience(REWARDS, group=1)).extra["advantages"]
    first = (rows().targets >= 0).int().argmax(1)
    each = torch.arange(8)
    torch.testing.assert_close(given[each, first], batch.extra["advantages"][each, first])


def test_reinforce_plus_plus_by_definition(parity: Parity) -> None:
    """Returns of tokens, whitened over the rollout, in a clipped surrogate after an update."""
    objective = build(GRPO(variant="reinforce++", kl=0.5), model())
    objective.model.load_state_dict(model(seed=1).state_dict())
    batch = objective.prepare(replace(experience(REWARDS, group=1), updates=2))
    objective.model.load_state_dict(model(seed=2).state_dict())
    start, before, policy = model(), model(seed=1), model(seed=2)
    learned, context = rows().targets >= 0, inference_context(rows())
    first, old, new = (
        one.logprobs(rows().tokens, rows().targets, context) for one in (start, before, policy)
    )
    away = (old - first).detach() * learned
    returns = REWARDS[:, None] - 0.5 * (away.sum(1, True) - away.cumsum(1) + away)
    advantages = (returns - returns[learned].mean()) / returns[learned].std()
    ratio = (new - old.detach()).exp()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    pairs = list(zip(objective.model.named_parameters(), policy.parameters(), strict=True))
    found = assert_equal(
        mean(objective(batch), batch),
        -surrogate[learned].mean(),
        lambda: [(name, ours.grad, theirs.grad) for (name, ours), theirs in pairs],
    )
    parity.note("grpo", "REINFORCE++", "definition", found)


def test_grpo_averages_coincide_where_lengths_are_equal() -> None:
    """Up to the constant length of Dr. GRPO."""
    batch = rows()
    targets = batch.targets.clone()
    targets[:, 1:7] = 3
    targets[:, 7:] = IGNORED
    lengths = torch.full((8,), 12)
    batch = replace(batch, targets=targets, lengths=lengths, counts=counts_of(targets, lengths))
    played = replace(experience(REWARDS, group=4, max_tokens=6), batch=batch)
    found = []
    for average in ("tokens", "sequences", "constant"):
        objective = build(GRPO(average=average), model())  # type: ignore[arg-type]
        prepared = objective.prepare(played)
        old = torch.full(prepared.targets.shape, -3.0)
        changed = replace(prepared, extra={**prepared.extra, "old": old})
        found.append(float(mean(objective(changed), changed).detach()))
    assert found[1:] == pytest.approx([found[0]] * 2, rel=1e-5)


@pytest.mark.parametrize("adapter", [False, True])
def test_preference_begins_at_log_two(adapter: bool) -> None:
    base = model()
    if adapter:
        LoRA(dropout=0.5).apply(base, seed=0)
    objective = build(Preference(), base)
    loss, batch = objective(rows()), paired(rows())
    assert float(mean(loss, batch).detach()) == pytest.approx(math.log(2), abs=1e-7)
    assert float(loss.metrics["accuracy"].total) == 0
    assert float(loss.metrics["margin"].total) == 0


@pytest.mark.parametrize("also", [(), ("embed",)])
def test_the_reference_stays_the_start(also: tuple[str, ...]) -> None:
    """Also where more than the adapters learns, which switching those off would not undo."""
    base = model()
    LoRA(train_also=also, dora=True).apply(base, seed=0)
    objective = build(Preference(), base)
    assert (objective.reference is None) == (not also)
    margin = objective(rows()).metrics["margin"].total
    with torch.no_grad():
        for parameter in objective.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    moved = objective(rows()).metrics["margin"].total
    reference = model()
    ratios = objective.model.logprobs(rows().tokens, rows().targets).sum(-1) - reference.logprobs(
        rows().tokens, rows().targets
    ).sum(-1)
    expected = 0.1 * (ratios[0::2] - ratios[1::2]).detach().sum()
    assert float(margin) == 0
    assert abs(float(moved)) > 1e-2
    torch.testing.assert_close(moved, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("loss", FORMS)
def test_losses_without_a_reference_own_none(loss: str) -> None:
    objective = build(Preference(loss=loss), model())  # type: ignore[arg-type]
    assert (objective.reference is not None) == FORMS[loss].reference
    assert set(objective.models()) == {"model", "reference"} if FORMS[loss].reference else {"model"}
    found = objective(rows())
    assert ("nll" in found.terms) == (loss in ("orpo", "cpo"))
    total(found).backward()
    assert all(p.grad is not None for p in objective.model.parameters())


def test_the_tail_of_the_longer_completion_counts_less() -> None:
    """As if the tokens beyond the shorter completion were not there, for a weight of zero."""
    objective = build(Preference(tail=0.0), model())
    objective.model.load_state_dict(model(seed=1).state_dict())
    batch = rows()
    targets = batch.targets.clone()
    for pair in range(4):
        shorter = int((targets[2 * pair : 2 * pair + 2] >= 0).sum(1).min())
        for row in (2 * pair, 2 * pair + 1):
            targets[row, shorter + 1 :] = IGNORED
    cut = replace(batch, targets=targets)
    torch.testing.assert_close(
        objective(batch).terms["preference"].total, objective(cut).terms["preference"].total
    )
    assert (batch.targets >= 0).sum() > (targets >= 0).sum()


def test_preference_of_equal_answers_teaches_nothing() -> None:
    objective = build(Preference(), model())
    batch = rows()
    for part in (batch.tokens, batch.targets):
        part[1::2] = part[0::2]
    total(objective(batch)).backward()
    for parameter in objective.model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() < 1e-6


def test_grpo_gradient_is_that_of_the_policy() -> None:
    """Ratio one: the gradient of -A log pi, token by token."""
    objective = build(GRPO(average="tokens"), model())
    batch = objective.prepare(experience(REWARDS, group=4))
    total(objective(batch)).backward()
    found = [p.grad.clone() for p in objective.parameters() if p.grad is not None]
    objective.zero_grad()
    logprobs = objective.model.logprobs(batch.tokens, batch.targets)
    (-logprobs * batch.extra["advantages"]).sum().backward()
    expected = [p.grad for p in objective.parameters() if p.grad is not None]
    torch.testing.assert_close(found, expected)


def test_grpo_tells_the_surprise_of_its_answers_and_clips_only_beside_an_earlier_policy() -> None:
    objective = build(GRPO(clip_low=0.2, clip_high=0.2), model())
    batch = objective.prepare(experience(REWARDS, group=4))
    metrics = objective(batch).metrics
    logprobs = objective.model.logprobs(batch.tokens, batch.targets)
    torch.testing.assert_close(metrics["entropy"].total, -logprobs.sum().detach())
    assert metrics["clip_fraction"].total == 0
    old = logprobs.detach() - 1  # every token has become likelier by e
    earlier = objective(replace(batch, extra={**batch.extra, "old": old})).metrics
    good = (batch.extra["advantages"] > 0) & (batch.targets >= 0)
    assert earlier["clip_fraction"].total == good.sum()


def test_a_step_without_anything_learned_is_an_error() -> None:
    targets = torch.full((8, 12), IGNORED)
    batch = replace(rows(), targets=targets, counts=counts_of(targets))
    with pytest.raises(TrainingError, match="nothing in its batch is learned"):
        one_step(build(NextToken(), model()), [batch])


def test_dropout_is_drawn_from_the_step() -> None:
    """Two runs with other random numbers behind them draw the same."""

    def run(noise: int) -> float:
        base = model()
        LoRA(dropout=0.5).apply(base, seed=0)
        with torch.no_grad():
            for name, parameter in base.named_parameters():
                if name.endswith(".b"):
                    parameter.fill_(0.1)
        torch.randn(noise)
        return one_step(build(NextToken(), base), [rows()])[0].loss

    assert run(1) == run(100)
