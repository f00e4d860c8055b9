"""Students and teachers, tiny ones: the divergence by definition, and what is learned."""

import itertools
from dataclasses import replace

import pytest
import tiny
import torch
from learning import fit, mean
from parity import Parity
from rolling import model as dialogue_model
from rolling import rollouts
from tiny import experience, rows
from torch import Tensor

from culm.batch import counts_of
from culm.config import SettingError, parse
from culm.model.transformer import Transformer
from culm.objective.distill import GKD, Distill, Distillation, hidden_distance, token_divergence
from culm.objective.objective import Objective
from culm.optim.adamw import AdamW

ALL = [
    {}, {"divergence": "reverse"}, {"divergence": "jsd", "beta": 0.3}, {"temperature": 2.0},
    {"top_k": 5}, {"nll": 0.5}, {"hidden": 0.1}, {"hidden": 0.1, "hidden_distance": "cosine"},
]  # fmt: skip


def build(config: Distillation, student: Transformer, teacher: Transformer) -> Objective:
    return config.build(student, lambda setting, path: teacher, 0)


def logits(seed: int) -> Tensor:
    return torch.randn(6, 20, generator=torch.Generator().manual_seed(seed)).double() * 2


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergences_are_those_of_their_definition(temperature: float, parity: Parity) -> None:
    student, teacher = logits(0), logits(1)
    q, p = ((x / temperature).softmax(-1) for x in (student, teacher))

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return (a * (a / b).log()).sum(-1)

    half = 0.3 * p + 0.7 * q
    for settings, wanted in (
        ({}, kl(p, q)),
        ({"divergence": "reverse"}, kl(q, p)),
        ({"divergence": "jsd", "beta": 0.3}, 0.3 * kl(p, half) + 0.7 * kl(q, half)),
    ):
        config = Distill(teacher="x", temperature=temperature, **settings)
        found = token_divergence(student, teacher, config)
        variant = f"{config.divergence}, temperature {temperature:g}"
        near = found.tolist(), wanted.tolist(), 1e-4
        parity.equal("distill", variant, "definition", *near)


def test_a_sparse_teacher_by_definition(parity: Parity) -> None:
    """The divergence of its three most likely tokens and of all others as one."""
    student, teacher = logits(0), logits(1)
    q, p = student.softmax(-1), teacher.softmax(-1)
    kept = p.topk(3, -1).indices
    small = [
        torch.cat([x.gather(-1, kept), 1 - x.gather(-1, kept).sum(-1, True)], -1) for x in (q, p)
    ]
    wanted = (small[1] * (small[1] / small[0]).log()).sum(-1)
    found = token_divergence(student, teacher, Distill(teacher="x", top_k=3)).tolist()
    parity.equal("distill", "sparse teacher (top-k)", "definition", found, wanted.tolist(), 1e-5)


@pytest.mark.parametrize("divergence", ["forward", "reverse", "jsd"])
def test_the_most_likely_tokens_and_the_rest(divergence: str) -> None:
    """With all but one the rest is a token; fewer give less, and never less than nothing."""
    student, teacher = logits(0), logits(1)
    found = [
        token_divergence(student, teacher, Distill(teacher="x", divergence=divergence, top_k=k))
        for k in (1, 4, 19, 20, None)
    ]
    torch.testing.assert_close(found[2], found[4], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[3], found[4])
    for less, more in itertools.pairwise(found[:3]):
        assert (less <= more + 1e-6).all()
    assert (found[0] >= 0).all()


@pytest.mark.parametrize("settings", ALL, ids=str)
def test_nothing_is_learned_from_oneself(settings: dict) -> None:
    objective = build(Distill(teacher="x", **settings), tiny.model(), tiny.model())
    loss = objective(rows())
    assert float(loss.terms["divergence"].total) == pytest.approx(0.0, abs=1e-5)
    assert float(loss.metrics["agreement"].total) == rows().counts["targets"]
    if "hidden" in settings:  # the projection is the identity
        assert float(loss.terms["hidden"].total) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("settings", ALL, ids=str)
def test_a_step_does_not_depend_on_how_it_is_cut(settings: dict) -> None:
    def run(at: list[int]) -> tuple[float, float, dict[str, Tensor]]:
        objective = build(Distill(teacher="x", **settings), tiny.model(), tiny.model(seed=1))
        whole = rows()
        parts = [whole.select(torch.arange(*pair)) for pair in itertools.pairwise(at)]
        (step,) = fit(objective, parts)
        weights = {name: p.detach().clone() for name, p in objective.named_parameters()}
        return step.loss, step.grad_norm, weights

    whole = run([0, 8])
    for at in ([0, 1, 8], [0, 3, 4, 8]):
        loss, norm, weights = run(at)
        assert (loss, norm) == pytest.approx(whole[:2], rel=1e-5)
        for name, weight in whole[2].items():
            torch.testing.assert_close(weights[name], weight, atol=1e-5, rtol=1e-4)


def test_the_teacher_stays_and_hard_targets_need_none_of_it() -> None:
    teacher = tiny.model(seed=1)
    objective = build(Distill(teacher="x", nll=0.3), tiny.model(), teacher)
    assert list(objective.models()) == ["model", "teacher"]
    assert list(objective.trained()) == ["model"]
    before = [p.clone() for p in teacher.parameters()]
    fit(objective, [rows()])
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))
    assert not teacher.training


def test_another_vocabulary_size_is_of_ids_without_tokens() -> None:
    config = tiny.model().config.model_copy(update={"vocabulary": 40})
    wide = config.build(1)
    objective = build(Distill(teacher="x"), tiny.model(), wide)
    assert torch.isfinite(mean(objective(rows()), rows()))


def test_what_a_teacher_must_be() -> None:
    config = tiny.model().config.model_copy(update={"head": "scalar", "tied": False})
    with pytest.raises(SettingError, match="scalar head; give a language model"):
        build(Distill(teacher="x"), tiny.model(), config.build(0))
    short = tiny.model().config.model_copy(update={"context": 8}).build(0)
    with pytest.raises(
        SettingError, match=r"longer than the context of x, 8; lower train\.context"
    ):
        build(Distill(teacher="x"), tiny.model(), short)(rows())


def test_padding_does_not_count_towards_the_context_of_a_teacher() -> None:
    """Rows of a rollout are padded to a multiple of 16; 20 tokens fit into a context of 20."""
    student, teacher = dialogue_model(0, context=20), dialogue_model(1, context=20)
    objective = build(GKD(teacher="x"), student, teacher)
    played = rollouts(objective, 4, 4, group=1, max_tokens=20)
    (batch,) = played.step(0)
    assert 16 < int(batch.lengths.max()) <= 20 < batch.tokens.shape[1]
    assert float(mean(objective(batch), batch)) > 0
    short = build(GKD(teacher="x"), student, dialogue_model(1, context=16))
    with pytest.raises(SettingError, match=r"longer than the context of x, 16; lower train\."):
        rollouts(short, 4, 4, group=1, max_tokens=20).step(0)


@pytest.mark.slow
def test_a_student_comes_closer_with_its_teacher_than_by_text() -> None:
    """At equal steps, on text that the teacher did not write; three seeds."""
    for seed in range(3):
        teacher = tiny.model(seed=10 + seed)
        found = []
        for config in (
            Distill(teacher="x"),
            Distill(teacher="x", divergence="reverse"),
            Distill(teacher="x", top_k=1, nll=50.0),
        ):
            objective = build(config, tiny.model(seed), teacher)
            optimizer = AdamW(rate=3e-3, weight_decay=0.0).build(objective)
            fit(objective, [rows()], 60, optimizer, clip=1.0)
            measured = build(Distill(teacher="x"), objective.model, teacher)
            found.append(float(mean(measured(rows()), rows()).detach()))
        assert max(found[:2]) < 0.5 * found[2], (seed, found)


def test_on_policy_the_student_answers_and_the_teacher_corrects() -> None:
    student, teacher = dialogue_model(0), dialogue_model(1)
    objective = build(GKD(teacher="x", divergence="reverse"), student, teacher)
    asked = rollouts(objective, 32, 32, group=1, max_tokens=6)
    optimizer = AdamW(rate=5e-3, weight_decay=0.0).build(objective)
    steps = fit(objective, asked, 30, optimizer, clip=1.0)
    losses = [step.metrics["divergence"] for step in steps]
    assert sum(losses[-5:]) < 0.3 * sum(losses[:5])


def test_a_rollout_is_learned_from_as_it_is() -> None:
    objective = build(GKD(teacher="x"), tiny.model(), tiny.model(seed=1))
    played = experience(torch.arange(8.0), group=1)
    assert objective.prepare(played) is played.batch
    nothing = replace(rows(), targets=rows().targets.clone().fill_(-100))
    nothing = replace(nothing, counts=counts_of(nothing.targets, nothing.lengths))
    assert float(mean(objective(nothing), nothing)) == 0


def test_distances_of_states_by_hand(parity: Parity) -> None:
    """The last pair has one direction and two lengths."""
    mine, other = torch.tensor([[1.0, 0], [1, 1], [2, 2]]), torch.tensor([[0.0, 1], [1, 0], [1, 1]])
    cosine = hidden_distance(mine, other, "cosine")
    wanted = [1.0, 1 - 0.5**0.5, 0.0]
    parity.golden("distill", "hidden states, cosine", cosine.tolist(), wanted, within=1e-6)
    mse = hidden_distance(mine, other, "mse")
    parity.golden("distill", "hidden states, mse", mse.tolist(), [1.0, 0.5, 1.0])
    with pytest.raises(SettingError, match="hidden_distance: it has an effect with hidden only"):
        parse(Distill, {"teacher": "x", "hidden_distance": "cosine"})
