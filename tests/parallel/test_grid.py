"""The grid: every objective, with every kind of weights, on one process and on two in both layouts.

Each cell is exact: the first step is what theory says, a run that was stopped and resumed is the
run that never was, and two processes do what one does. `python bench/grid.py` draws the table.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from stages import STAGES, untimed, weights_in
from test_ranks import assert_same, on_two_ranks

from culm.convert.export import quantize
from culm.files import read_lines
from culm.run.settings import read_run
from culm.run.train import train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
WEIGHTS = ("full", "lora", "dora", "qlora")
STEPS = 3
Cell = tuple[str, str]


@pytest.fixture(scope="module")
def files(stage: Callable[..., dict], tmp_path_factory: pytest.TempPathFactory) -> dict[Cell, Path]:
    """A run file for each objective and kind of weights; the frozen ones of QLoRA have 8 bits."""
    folder, found = tmp_path_factory.mktemp("grid"), {}
    for name in STAGES:
        for weights in WEIGHTS:
            settings = stage(name, adapter=weights != "full", steps=STEPS)
            if weights == "dora":
                settings["train"]["adapter"] = {**settings["train"]["adapter"], "dora": True}
            if weights == "qlora":
                start, packed = settings["start"], folder / f"{name}-int8"
                if name in ("fim", "diffusion"):  # a quantised head cannot grow: its start has done
                    config, _ = read_run(str(found[name, "full"]), [f"folder={folder}/{name}"])
                    train(config)
                    start = config.folder
                settings["start"] = str(quantize(start, packed, "int8"))
            path = folder / f"{name}-{weights}.yaml"
            path.write_text(yaml.safe_dump({**settings, "folder": str(path.with_suffix(""))}))
            found[name, weights] = path
    return found


@pytest.fixture(scope="module")
def one(files: dict[Cell, Path]) -> Callable[[Cell], Path]:
    """The folder of a cell, trained in this process."""
    torch.set_num_threads(1)
    done: dict[Cell, Path] = {}

    def folder(cell: Cell) -> Path:
        if cell not in done:
            config, _ = read_run(str(files[cell]))
            train(config)
            done[cell] = Path(config.folder)
        return done[cell]

    return folder


@pytest.fixture(scope="module")
def two(files: dict[Cell, Path]) -> None:
    """All cells on two processes, in both layouts."""
    runs = [
        f"{file},parallel.data={layout},folder={file}-{layout}"
        for file in files.values()
        for layout in ("ddp", "fsdp")
    ]
    for start in range(0, len(runs), 22):  # what one pair of processes does in its time
        on_two_ranks(*runs[start : start + 22])


def first_step(name: str, weights: str, line: dict[str, Any]) -> None:
    """What theory says of the first step, at which the policy is its own reference."""
    match name:
        case "pretrain" if weights == "full":
            assert line["loss"] == pytest.approx(math.log(262), abs=0.1)  # it knows nothing yet
        case "dpo":
            assert line["loss"] == pytest.approx(math.log(2), abs=1e-6)
            assert line["margin"] == pytest.approx(0, abs=1e-6)
        case "kto":
            assert line["loss"] == pytest.approx(0.5, abs=1e-6)
        case "reward":
            assert line["loss"] == pytest.approx(math.log(2), abs=0.1)  # the head knows nothing
        case "grpo" | "dapo" | "filtered" | "ppo" | "shared":
            assert line["clip_fraction"] == 0
            assert line["kl"] == pytest.approx(0, abs=1e-6)
        case "distill" | "gkd" if weights != "qlora":  # whose teacher has more bits
            assert line["divergence"] == pytest.approx(0, abs=1e-5)  # the teacher is the start
        case _:
            assert math.isfinite(line["loss"])


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", STAGES)
def test_on_one_process(name: str, weights: str, files, one) -> None:
    """The first step, and a resumed run that equals one that was never stopped, to the bit."""
    whole = one((name, weights))
    lines = read_lines(whole / "metrics.jsonl")
    first_step(name, weights, lines[0])
    again = f"{files[name, weights]}-again"
    train(read_run(str(files[name, weights]), ["train.steps=2", f"folder={again}"])[0])
    train(read_run(str(files[name, weights]), [f"folder={again}"])[0])
    for a, b in zip(lines, read_lines(Path(again) / "metrics.jsonl"), strict=True):
        assert untimed(a) == untimed(b)
    ours, theirs = weights_in(whole), weights_in(Path(again))
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        assert torch.equal(theirs[key], tensor), key


@pytest.mark.parametrize("layout", ["ddp", "fsdp"])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", STAGES)
def test_on_two_processes(name: str, weights: str, layout: str, files, one, two) -> None:
    """Every step's facts, and the model that came of them."""
    assert_same(one((name, weights)), Path(f"{files[name, weights]}-{layout}"))
