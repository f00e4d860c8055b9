"""Auxiliary losses and selection biases in the one loop: right however a step is cut."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from learning import build, fit, mean
from safetensors.torch import load_file
from torch import Tensor

from culm.batch import IGNORED, Batch, Loss, Term, counts_of
from culm.config import parse
from culm.files import read_lines
from culm.model.attention.gqa import GQA
from culm.model.mlp.moe import MoE
from culm.model.transformer import Transformer, TransformerConfig
from culm.objective.experience import Experience
from culm.objective.experts import move_bias
from culm.objective.grpo import GRPO
from culm.objective.next_token import NextToken
from culm.objective.ppo import PPO
from culm.objective.preference import Preference
from culm.parallel.checkpointing import checkpoint_blocks
from culm.parallel.parallelize import compile_blocks
from culm.run.settings import RunConfig
from culm.run.train import train
from culm.train.events import Stepped

LENGTHS = (3, 9, 12, 5, 2, 7, 12, 4)
EXACT = {"sequence_balance_loss": 0.5, "z_loss": 0.1, "bias_rate": 0.01, "selection_bias": True}


def model(**settings: object) -> Transformer:
    moe = MoE(**{"experts": 4, "top_k": 2, "hidden": 16, **settings})  # type: ignore[arg-type]
    config = TransformerConfig(
        vocabulary=31, width=16, layers=2, context=12, attention=(GQA(heads=2),), mlp=(moe,)
    )
    built = config.build(0)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(5)
    return built


def rows() -> Batch:
    """Eight rows of unequal length, in which every other token is learned."""
    chance = torch.Generator().manual_seed(1)
    tokens = torch.randint(31, (8, 12), generator=chance)
    targets = torch.full((8, 12), IGNORED)
    for row, count in enumerate(LENGTHS):
        targets[row, : count - 1 : 2] = tokens[row, 1:count:2]
    lengths, positions = torch.tensor(LENGTHS), torch.arange(12).expand(8, 12)
    return counted(Batch(tokens, targets, positions, lengths=lengths))


def counted(batch: Batch) -> Batch:
    """The same with its counts, as single rows and as pairs."""
    counts = counts_of(batch.targets, batch.lengths)
    return replace(batch, counts={**counts, "pairs": len(batch.tokens) / 2})


def cut(batch: Batch, *sizes: int) -> list[Batch]:
    parts = zip(
        *(t.split(sizes) for t in (batch.tokens, batch.targets, batch.positions)),
        torch.tensor(LENGTHS).split(sizes), strict=True,
    )  # fmt: skip
    return [
        counted(
            Batch(
                tokens[:, : lengths.max()], targets[:, : lengths.max()],
                positions[:, : lengths.max()], lengths=lengths,
            )
        )
        for tokens, targets, positions, lengths in parts
    ]  # fmt: skip


def after(batches: list[Batch], **settings: object) -> tuple[Stepped, dict[str, Tensor]]:
    built = model(**settings)
    (step,) = fit(build(NextToken(), built), batches)
    return step, built.state_dict()


@pytest.mark.parametrize("sizes", [(1, 7), (3, 1, 4), (1,) * 8])
def test_a_step_does_not_depend_on_how_it_is_cut(sizes: tuple[int, ...]) -> None:
    """Padding, learned tokens and lengths differ between the parts."""
    (one, weights), (two, others) = after([rows()], **EXACT), after(cut(rows(), *sizes), **EXACT)
    assert two.metrics == pytest.approx(one.metrics, abs=1e-5)
    assert two.loss == pytest.approx(one.loss, abs=1e-5)
    assert one.metrics["auxiliary"] > 0.4
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, atol=2e-5, rtol=1e-4)
    assert any(w.abs().max() > 0 for name, w in weights.items() if "selection" in name)


def test_the_auxiliary_loss_is_a_mean_over_the_tokens_read() -> None:
    """It stands beside the mean over learned tokens, whatever their share is."""
    found, fewer = rows(), rows()
    fewer.targets[:, 2:] = IGNORED
    fewer = counted(fewer)
    values = [after([batch], balance_loss=1.0)[0].metrics["auxiliary"] for batch in (found, fewer)]
    assert values[0] == pytest.approx(values[1])
    assert 1.9 < values[0] < 8  # two layers, each 1 where all is even and 4 where one gets all
    plain, even = after([found])[0], after([found], balance_loss=1.0)[0]
    assert even.metrics["nll"] == plain.metrics["nll"] == plain.loss
    assert even.loss == pytest.approx(plain.loss + even.metrics["auxiliary"])
    assert plain.metrics["auxiliary"] == 0
    terms = {
        "nll": Term(torch.tensor(6.0), "targets"),
        "other": Term(torch.tensor(5.0), "tokens", 2),
    }
    assert Loss(terms).mean({"targets": 2, "tokens": 5}) == 5


def test_every_objective_brings_the_losses_of_experts() -> None:
    """Those of the model that learns, not of the reference; and a gradient for its router."""
    batch, tokens = rows(), sum(LENGTHS)
    empty = torch.zeros(8, 12)
    extra = {"advantages": empty, "sampler": empty, "scales": torch.ones(8)}
    found = []
    for config in (NextToken(), Preference(), GRPO()):
        built = model(**EXACT, normalize=False)
        loss = build(config, built)(replace(batch, extra=extra))
        assert [count[:-1].sum() for count in loss.statistics.values()] == [2 * tokens] * 2
        auxiliary = loss.terms["auxiliary"]
        assert auxiliary.per == "tokens"
        (auxiliary.total / tokens).backward()
        found.append(auxiliary.total.item())
        assert built.blocks[0].mlp.router.weight.grad.abs().sum() > 0  # type: ignore[union-attr, operator]
    assert found == pytest.approx(found[:1] * 3)


def test_load_is_told() -> None:
    step, _ = after([rows()], capacity=1.0)
    loads = [step.metrics[f"load.{expert}"] for expert in range(4)]
    assert sum(loads) == pytest.approx(4)
    assert max(loads) - 1 == pytest.approx(step.metrics["max_violation"])
    worst = max(step.metrics["max_violation.0"], step.metrics["max_violation.1"])
    assert worst == step.metrics["max_violation"] > 0
    assert 0 < step.metrics["dropped"] < 1
    assert after([rows()])[0].metrics["dropped"] == 0


def test_the_bias_moves_towards_the_mean_and_keeps_its_sum() -> None:
    router = model(selection_bias=True, bias_rate=0.1).blocks[0].mlp.router
    move_bias(router, torch.tensor([9.0, 1.0, 1.0, 1.0]))
    torch.testing.assert_close(router.selection, torch.tensor([-0.15, 0.05, 0.05, 0.05]))
    move_bias(router, torch.tensor([2.0, 2.0, 2.0, 2.0]))
    torch.testing.assert_close(router.selection, torch.tensor([-0.15, 0.05, 0.05, 0.05]))
    router.weight.requires_grad_(False)
    move_bias(router, torch.tensor([9.0, 1.0, 1.0, 1.0]))
    torch.testing.assert_close(router.selection, torch.tensor([-0.15, 0.05, 0.05, 0.05]))


@pytest.mark.parametrize(
    "prepare", [checkpoint_blocks, pytest.param(compile_blocks, marks=pytest.mark.slow)]
)
def test_recomputed_and_compiled_blocks_count_the_same(prepare: Callable) -> None:
    found = []
    for changed in (False, True):
        built = model(**EXACT, balance_loss=0.3)
        objective = build(NextToken(), built)
        if changed:
            prepare(objective)
        loss = objective(rows())
        mean(loss, rows()).backward()
        grads = [p.grad for p in built.parameters()]
        terms = [term.total for term in loss.terms.values()]
        found.append([*terms, *loss.statistics.values(), *grads])
    for plain, other in zip(*found, strict=True):
        torch.testing.assert_close(other, plain, atol=1e-4, rtol=1e-4)


def violation(**settings: object) -> float:
    """MaxVio after 200 steps of a router that favours expert 0 by 3; nothing else learns."""
    moe = MoE(experts=8, hidden=8, bias=True, scores="sigmoid", **settings)  # type: ignore[arg-type]
    built = TransformerConfig(
        vocabulary=500, width=16, layers=1, context=16, attention=(GQA(heads=2),), mlp=(moe,)
    ).build(0)
    built.requires_grad_(False)
    router = built.blocks[0].mlp.router.requires_grad_(True)  # type: ignore[union-attr, operator]
    router.bias.data[0] = 3.0
    router.weight.data.mul_(10)

    def batch(number: int) -> list[Batch]:
        tokens = torch.randint(500, (32, 16), generator=torch.Generator().manual_seed(number))
        positions = torch.arange(16).expand(32, 16)
        return [counted(Batch(tokens, tokens.roll(-1, 1), positions))]

    objective = build(NextToken(), built)
    optimizer = torch.optim.AdamW(built.parameters(), lr=0.05, weight_decay=0.0)
    steps = fit(objective, batch, 200, optimizer)
    last = [step.metrics["max_violation"] for step in steps[-10:]]
    return sum(last) / len(last)


def test_a_skewed_router_is_balanced_by_either_means_and_not_without() -> None:
    assert violation() > 1
    assert violation(selection_bias=True, bias_rate=0.01) < 0.3
    assert violation(balance_loss=0.1) < 0.3


MIXTURE = {"kind": "moe", "experts": 4, "top_k": 2, "hidden": 16, **EXACT}


def test_a_run_of_experts_goes_on_exactly(stage: Callable[..., dict], tmp_path: Path) -> None:
    """Stopped after a checkpoint, biases and all."""
    settings = stage("pretrain", steps=5, checkpoint={"every_steps": 3})
    settings["model"] = {**settings["model"], "mlp": {**MIXTURE, "balance_loss": 0.01}}

    def run(name: str, steps: int) -> Path:
        trained = {**settings["train"], "steps": steps}
        folder = tmp_path / name
        train(parse(RunConfig, {**settings, "train": trained, "folder": str(folder)}))
        return folder

    one = run("one", 5)
    run("two", 3)
    two = run("two", 5)
    weights = [load_file(folder / "model" / "model.safetensors") for folder in (one, two)]
    for name, weight in weights[0].items():
        assert torch.equal(weights[1][name], weight), name
    bias = weights[0]["blocks.0.mlp.router.selection"]
    assert bias.dtype == torch.float32
    assert bias.abs().max() > 0.01
    lines = read_lines(one / "metrics.jsonl")
    assert {"auxiliary", "max_violation", "load.3", "dropped"} <= lines[-1].keys()


def test_the_experts_of_a_policy_and_of_its_critic_are_each_balanced_by_their_own_loads() -> None:
    """The loads of a forward have numbers, which must be those of the routers in their order."""
    objective = build(PPO(), model(**EXACT))
    batch = rows()
    behaviour = torch.zeros(batch.targets.shape)
    prepared = objective.prepare(Experience(batch, torch.arange(8.0), behaviour))
    routers = [block.mlp.router for block in objective.critic.blocks]
    with torch.no_grad():  # all that the critic reads goes to its first two experts
        for router in routers:
            router.selection[:2] += 1000
    objective.before_update(objective(prepared).statistics)
    for router in routers:
        assert (router.selection[:2] < 1000).all()
        assert (router.selection[2:] > 0).all()
