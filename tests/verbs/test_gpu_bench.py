"""What `bench/gpu.py` compares learns the same; times are for a GPU."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "bench"))
from gpu import Result, differing, flops_per_token
from gpu_contenders import Culm, Learning, Plain, Task

from culm.verbs.bench import SIZES

MODEL = SIZES["T"].model.model_copy(update={"layers": 2, "width": 32, "context": 16})


def learned(contender: Culm | Plain) -> Result:
    """Losses before and after three steps."""
    ids = torch.randint(0, 256, (2, 17), generator=torch.Generator().manual_seed(0))
    learning: Learning = contender.ready(Task(MODEL, ids, torch.device("cpu"), torch.float32))
    before = learning.loss()
    for _ in range(3):
        learning.step()
    return Result([], 0, (before, learning.loss()))


def test_a_transformer_written_by_hand_learns_what_culm_learns(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "compile", lambda module: module)
    ours, plain = learned(Culm(compile=False)), learned(Plain(shards=False))
    assert plain.losses == pytest.approx(ours.losses, rel=1e-5)
    assert ours.losses[1] < ours.losses[0]


def test_parts_that_are_exchanged_change_no_loss():
    ours = learned(Culm(compile=False))
    for part in (Culm(compile=False, foreach=True), Culm(compile=False, checkpointing="full")):
        assert learned(part).losses == pytest.approx(ours.losses, rel=1e-6)


def test_a_loss_that_differs_is_named():
    results = {"culm": Result([], 0, (5.0, 4.0)), "other": Result([], 0, (5.0, 4.2))}
    assert differing(results) == ["other: losses 5.0000 and 4.2000, and not 5.0000 and 4.0000"]


def test_flops_of_a_token_are_six_a_weight_and_twelve_a_score():
    layer = 32 * 32 * 4 + 3 * 32 * 352  # queries, keys, values, output; gate, up, down
    assert flops_per_token(MODEL) == 6 * (2 * layer + 256 * 32) + 12 * 2 * 32 * 16
