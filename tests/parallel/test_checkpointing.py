"""What a block keeps for its backward changes memory and time, and nothing else."""

from collections.abc import Callable

import pytest
import torch
from learning import build

from culm.batch import Batch
from culm.config import parse
from culm.model.attention.gqa import GQA
from culm.model.mlp.moe import MoE
from culm.model.transformer import TransformerConfig
from culm.objective.next_token import NextToken
from culm.objective.objective import Objective
from culm.parallel.parallelize import Checkpointing, parallelize
from culm.plan.dry_run import ONES, dry_run, meta_batch
from culm.run.settings import RunConfig

KINDS: tuple[Checkpointing, ...] = ("none", "selective", "full")


def objective(device: str = "cpu", **more: object) -> Objective:
    config = TransformerConfig(
        vocabulary=64, width=64, layers=4, context=64, attention=(GQA(heads=4),), **more
    )
    return build(NextToken(), config.build(0) if device == "cpu" else config.build(device=device))


def gradients(kind: Checkpointing, **more: object) -> list[torch.Tensor]:
    learned = objective(**more)
    parallelize(learned, activation_checkpointing=kind)
    chance = torch.Generator().manual_seed(0)
    tokens = torch.randint(64, (2, 64), generator=chance)
    batch = Batch(tokens, tokens.roll(-1, 1), torch.arange(64).expand(2, -1))
    learned(batch).mean(ONES).backward()
    return [parameter.grad for parameter in learned.parameters()]


@pytest.mark.parametrize("more", [{}, {"mlp": (MoE(experts=4, hidden=32),)}], ids=["dense", "moe"])
def test_gradients_are_the_same_bit_for_bit(more: dict) -> None:
    kept = gradients("none", **more)
    for kind in ("selective", "full"):
        for one, other in zip(kept, gradients(kind, **more), strict=True):
            assert torch.equal(one, other)


def test_the_more_is_computed_again_the_less_is_kept() -> None:
    """As a plan sees it; selective computes no matmul again."""
    costs = {}
    for kind in KINDS:
        learned = objective("meta")
        parallelize(learned, activation_checkpointing=kind)
        costs[kind] = dry_run(learned, meta_batch(8, 64))
    assert costs["full"].bytes < 0.8 * costs["selective"].bytes
    assert costs["selective"].bytes < 0.8 * costs["none"].bytes
    assert costs["selective"].flops == costs["none"].flops < costs["full"].flops


def test_a_share_needs_the_compiler(stage: Callable[..., dict]) -> None:
    settings = {**stage("sft", activation_checkpointing=0.5), "folder": "x"}
    with pytest.raises(ValueError, match="the compiler chooses a share of activations"):
        parse(RunConfig, settings)
    settings["train"]["compile"] = True
    assert parse(RunConfig, settings).train.activation_checkpointing == 0.5
    settings["train"]["activation_checkpointing"] = 1.5
    with pytest.raises(ValueError, match="activation_checkpointing"):
        parse(RunConfig, settings)


@pytest.mark.slow
def test_the_compiler_keeps_a_share() -> None:
    kept, torch._functorch.config.activation_memory_budget = gradients("none"), 1.0
    learned = objective()
    parallelize(learned, activation_checkpointing=0.3, compile=True)
    assert torch._functorch.config.activation_memory_budget == 0.3
    chance = torch.Generator().manual_seed(0)
    tokens = torch.randint(64, (2, 64), generator=chance)
    batch = Batch(tokens, tokens.roll(-1, 1), torch.arange(64).expand(2, -1))
    learned(batch).mean(ONES).backward()
    for one, parameter in zip(kept, learned.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, one, atol=1e-5, rtol=1e-4)
    torch._functorch.config.activation_memory_budget = 1.0
