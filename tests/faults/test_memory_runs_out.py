"""Out of memory: met before training by a trial of the first micro-batch, and never saved."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stages import go

from culm.exits import MEMORY, OutOfMemory, exit_code
from culm.files import read_json, read_lines
from culm.parallel.parallelize import Parallel
from culm.train.checkpoint.folder import steps_in

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]


def failing(patch: pytest.MonkeyPatch, at: int, error: BaseException) -> None:
    """The forward and backward number `at` (from 0) does not fit."""
    count, gradients = [0], Parallel.gradients

    def limited(self: Parallel, *arguments: Any) -> Any:
        count[0] += 1
        if count[0] - 1 == at:
            raise error
        return gradients(self, *arguments)

    patch.setattr(Parallel, "gradients", limited)


@pytest.mark.parametrize("error", ERRORS, ids=["gpu", "cpu", "python"])
def test_before_anything_is_trained_or_measured(
    error: BaseException, stage: Callable[..., dict], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    settings = {**stage("sft"), "folder": str(tmp_path / "run")}
    with monkeypatch.context() as patch:
        failing(patch, 0, error)
        with pytest.raises(
            OutOfMemory,
            match=r"step 1: there is not enough memory for 2 sequences at once .*; use a smaller "
            r"train\.micro_batch_size, train\.activation_checkpointing=full, .*`culm plan` shows",
        ) as raised:
            go(settings)
    assert exit_code(raised.value) == MEMORY
    assert "By the plan, use train.micro_batch_size=1 train.activation_" in str(raised.value)
    assert not read_lines(tmp_path / "run" / "metrics.jsonl")
    assert not read_lines(tmp_path / "run" / "eval.jsonl")
    status = read_json(tmp_path / "run" / "status.json")
    assert (status["state"], status["step"]) == ("failed", 0)
    assert "not enough memory" in status["reason"]
    assert go(settings, micro_batch_size=1).finished


def test_in_the_middle_nothing_is_saved_of_it(
    stage: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        **stage("sft", steps=6, checkpoint={"every_steps": 2}),
        "folder": str(tmp_path / "run"),
    }
    with monkeypatch.context() as patch:
        failing(patch, 4, ERRORS[0])
        with pytest.raises(OutOfMemory, match=r"step 4: .* resumes from the last checkpoint"):
            go(settings)
    assert steps_in(tmp_path / "run") == [2]
    assert read_json(tmp_path / "run" / "status.json")["step"] == 3
    assert go(settings, micro_batch_size=1).finished


def test_another_error_is_not_called_so(
    stage: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, 2, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match=r"^shapes differ$"):
        go({**stage("sft"), "folder": str(tmp_path / "run")})
