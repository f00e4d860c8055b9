"""What one process of a layout holds and computes, counted without the others."""

import time

import pytest
import torch
from learning import build

from culm.model.attention.gqa import GQA
from culm.model.mlp.moe import MoE
from culm.model.transformer import TransformerConfig
from culm.objective.next_token import NextToken
from culm.optim.adamw import AdamW
from culm.parallel.checkpointing import checkpoint_blocks
from culm.parallel.settings import ParallelConfig
from culm.plan.dry_run import dry_run, meta_batch, set_backend
from culm.plan.layout import Layout
from culm.plan.needs import Needs, Step, needs_of
from culm.run.settings import read_run

WIDE = TransformerConfig(
    vocabulary=256, width=64, layers=4, context=256, attention=(GQA(heads=8),), tied=False
)
MIXED = WIDE.model_copy(update={"mlp": (MoE(experts=8, hidden=64),)})


def plan(config: TransformerConfig, processes: int, **settings) -> Needs:
    objective = build(NextToken(), config.build(device="meta"))
    layout = Layout(ParallelConfig(**settings), processes)
    return needs_of(objective, AdamW(), Step(256, 64, 4, layout=layout))


def test_tensor_parallel_ranks_divide_matmuls_and_their_weights() -> None:
    one, four = plan(WIDE, 1), plan(WIDE, 4, tensor=4)
    assert four.parameters == one.parameters
    norms = 4 * 64 * (2 * 4 + 1)
    rotary = one.memory.weights - 4 * one.parameters
    assert four.memory.weights - rotary == (4 * one.parameters - norms) // 4 + norms
    assert four.memory.activations < 0.45 * one.memory.activations
    assert four.flops == pytest.approx(one.flops, rel=0.01)
    assert four.memory.optimizer == pytest.approx(2 * four.memory.gradients, rel=0.01)


def test_context_parallel_ranks_divide_activations() -> None:
    one, four = plan(WIDE, 1), plan(WIDE, 4, context=4, context_method="ulysses")
    assert four.memory.weights == one.memory.weights
    assert four.memory.activations < 0.5 * one.memory.activations


def test_experts_are_divided() -> None:
    one, four = plan(MIXED, 1), plan(MIXED, 4, expert=4)
    experts = 4 * 4 * 3 * 8 * 64 * 64  # bytes, layers, matrices, experts, width, inner width
    assert four.memory.weights == one.memory.weights - experts * 3 // 4
    assert set(four.sent["expert"]) == {"all-to-all"}


def test_copies_of_shards_hold_what_one_copy_holds() -> None:
    two, copies = plan(WIDE, 2, data="fsdp"), plan(WIDE, 4, data="fsdp", replicas=2)
    assert copies.memory.weights == two.memory.weights
    assert copies.sent["data"]["all-reduce"] > 0
    assert two.sent["data"]["all-reduce"] == 0


def test_a_gpu_stores_no_scores_of_attention() -> None:
    """Twice the tokens take twice the memory; blocks are computed again with the same kernel."""
    found = []
    for length in (1024, 2048):
        objective = build(NextToken(), WIDE.build(device="meta"))
        objective.model.dtype = torch.bfloat16
        blocks = dry_run(objective, meta_batch(1, length, packed=False)).bytes
        set_backend(objective, "auto", True, torch.bfloat16)
        flash = dry_run(objective, meta_batch(1, length, packed=False)).bytes
        assert flash < 0.5 * blocks
        checkpoint_blocks(objective)
        found.append((flash, dry_run(objective, meta_batch(1, length, packed=False)).bytes))
    (short, short_again), (long, long_again) = found
    # The head computes 1,024 tokens at once, however many there are.
    assert long == pytest.approx(2 * short, rel=0.1)
    assert long_again < 0.7 * long
    assert long_again == pytest.approx(2 * short_again, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("run", "processes"), [("7b", 8), ("32b", 512), ("32b", 1024)])
def test_a_run_on_a_cluster_is_planned_in_seconds(run: str, processes: int) -> None:
    began = time.perf_counter()
    config, _ = read_run(run, [])
    objective = config.train.objective.build(config.model.build(device="meta"), None, 0)
    objective.model.dtype = torch.bfloat16
    set_backend(objective, "auto", True, torch.bfloat16)
    checkpoint_blocks(objective)
    train, layout = config.train, Layout(config.parallel, processes)
    step = Step(config.model.context, train.batch_size, train.at_once, layout=layout)
    needs = needs_of(objective, train.optimizer, step)
    assert needs.memory.total < 80e9
    assert time.perf_counter() - began < 30
