"""The same run file on one rank and on two: the same steps."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as distributed
import yaml
from safetensors.torch import load_file
from stages import CORE, untimed, weights_in

from culm.adapt.quantize.int8 import Int8Linear
from culm.convert import native
from culm.convert.export import quantize
from culm.files import read_lines
from culm.parallel.parallelize import Parallel
from culm.run.settings import read_run
from culm.run.train import train

# The other half, and the other stages, are slow tests: test_grid.py.
FIRST = [("sft", False, "fsdp"), ("dpo", True, "ddp"), ("ppo", False, "fsdp")]
GRID = [(name, *cell) for name in CORE for cell in ((False, "fsdp"), (True, "ddp"))]


def on_two_ranks(*runs: str) -> None:
    """Runs (a file, settings after commas), one after the other in one pair of processes."""
    script = Path(__file__).with_name("ranks.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    done = subprocess.run(
        [*command, str(script), *runs],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=420,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]


def assert_same(one: Path, two: Path) -> None:
    """Every step's facts, and the model that came of them."""
    lines = [read_lines(folder / "metrics.jsonl") for folder in (one, two)]
    for a, b in zip(*lines, strict=True):
        # Relative too: the rates are so high that DPO's loss is 12 after the first step.
        assert b["loss"] == pytest.approx(a["loss"], rel=2e-5, abs=1e-5), two.name
        for name in untimed(a):
            assert b[name] == pytest.approx(a[name], rel=1e-4, abs=1e-5), (two.name, name, a, b)
    a, b = (read_lines(folder / "eval.jsonl")[0] for folder in (one, two))
    assert_same_results(a, b)  # of the same weights, each rank having measured a share
    a, b = (read_lines(folder / "eval.jsonl")[-1] for folder in (one, two))
    assert a.keys() == b.keys()
    assert b.get("loss", 0) == pytest.approx(a.get("loss", 0), abs=1e-3)
    models = [weights_in(folder) for folder in (one, two)]
    assert models[0].keys() == models[1].keys()
    for name, weight in models[0].items():
        torch.testing.assert_close(models[1][name], weight, atol=2e-3, rtol=0, msg=name)


def quantised_start(file: Path) -> Path:
    """The same run from int8 weights."""
    settings = yaml.safe_load(file.read_text())
    settings["start"] = str(quantize(settings["start"], file.with_suffix(".int8"), "int8"))
    file.write_text(yaml.safe_dump(settings))
    return file


def assert_same_results(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        expected = pytest.approx(value, rel=1e-6) if isinstance(value, float) else value
        assert b[name] == expected, name


def follow_one(run_file: Callable[..., Path], cells: Sequence[tuple[str, bool, str]]) -> None:
    """cells: a stage, whether with an adapter, a layout."""
    steps = {"ppo": 7}  # the second rollout is of the policy that learned from the first
    files = {c: run_file(c[0], adapter=c[1], steps=steps.get(c[0], 3)) for c in cells}
    on_two_ranks(
        *(f"{file},parallel.data={cell[2]},folder={file}-two" for cell, file in files.items())
    )
    for file in files.values():
        config, _ = read_run(str(file))
        train(config)
        assert_same(Path(config.folder), Path(f"{file}-two"))


def test_two_ranks_follow_one(run_file: Callable[..., Path]) -> None:
    follow_one(run_file, FIRST)


@pytest.mark.slow
def test_two_ranks_of_each_objective_follow_one(run_file: Callable[..., Path]) -> None:
    """Full and with adapters; both layouts."""
    follow_one(run_file, [cell for cell in GRID if cell not in FIRST])


@pytest.mark.slow
def test_two_ranks_go_on_where_one_stopped(run_file: Callable[..., Path]) -> None:
    """Of PPO in the middle of a rollout."""
    files = [run_file("dpo", steps=4), run_file("ppo", steps=4)]
    for file in files:
        train(read_run(str(file), ["train.steps=2", f"folder={file}-two"])[0])
    on_two_ranks(*(f"{file},parallel.data=fsdp,folder={file}-two" for file in files))
    for file in files:
        config, _ = read_run(str(file))
        train(config)
        assert_same(Path(config.folder), Path(f"{file}-two"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mtp", "qlora"])
def test_two_ranks_of_other_models_follow_one(kind: str, run_file: Callable[..., Path]) -> None:
    file, more = run_file("pretrain", steps=3), ["model.mtp.depth=2"]
    if kind == "qlora":
        file, more = quantised_start(run_file("sft", adapter=True, steps=3)), []
    given = ",".join([str(file), *more])
    layouts = ("ddp", "fsdp")
    on_two_ranks(*(f"{given},parallel.data={data},folder={file}-{data}" for data in layouts))
    config, _ = read_run(str(file), more)
    train(config)
    for data in layouts:
        assert_same(Path(config.folder), Path(f"{file}-{data}"))


@pytest.mark.slow
def test_ranks_that_compute_a_row_together_merge_their_adapter(
    run_file: Callable[..., Path],
) -> None:
    """Context-parallel ranks have whole weights, and still none of them can compute alone: the
    check of merged weights waited for the other rank for ever.
    """
    runs = {file: run_file(file, adapter=True, steps=3) for file in ("sft", "dpo")}
    on_two_ranks(*(f"{file},parallel.context=2,folder={file}-two" for file in runs.values()))
    for file in runs.values():
        config, _ = read_run(str(file))
        train(config)
        assert_same(Path(config.folder), Path(f"{file}-two"))
        assert (Path(f"{file}-two") / "adapter").is_dir()


@pytest.mark.slow
def test_two_ranks_that_train_quantised_weights_follow_one(run_file: Callable[..., Path]) -> None:
    file = run_file("sft", qat="int8", steps=3)
    on_two_ranks(f"{file},parallel.data=fsdp,folder={file}-two")
    config, _ = read_run(str(file))
    train(config)
    models = [native.load(f)[0] for f in (f"{config.folder}/model", f"{file}-two/model")]
    one, two = ([m for m in model.modules() if isinstance(m, Int8Linear)] for model in models)
    assert len(one) == len(two) == 15
    for a, b in zip(one, two, strict=True):  # a weight between two steps may go either way
        torch.testing.assert_close(b.dequantize(), a.dequantize(), atol=1e-2, rtol=0)


@pytest.mark.slow
def test_two_ranks_of_experts_follow_one(run_file: Callable[..., Path], tmp_path: Path) -> None:
    """Losses within sequences, and biases that follow the load of the whole step."""
    file = run_file("pretrain", steps=3, batch_size=8, micro_batch_size=2)
    settings = yaml.safe_load(file.read_text())
    settings["model"]["mlp"] = {
        "kind": "moe", "experts": 4, "hidden": 16, "scores": "sigmoid", "selection_bias": True,
        "bias_rate": 0.01, "sequence_balance_loss": 0.1, "z_loss": 0.01, "shared": 1,
    }  # fmt: skip
    file.write_text(yaml.safe_dump(settings))
    layouts = ("ddp", "fsdp")
    on_two_ranks(*(f"{file},parallel.data={name},folder={tmp_path}/{name}" for name in layouts))
    config, _ = read_run(str(file))
    train(config)
    for name in layouts:
        assert_same(Path(config.folder), tmp_path / name)
    weights = load_file(tmp_path / "ddp" / "model" / "model.safetensors")
    assert weights["blocks.1.mlp.router.selection"].abs().max() > 0.005


@pytest.mark.slow
def test_rows_that_do_not_divide_are_refused(run_file: Callable[..., Path]) -> None:
    with pytest.raises(AssertionError, match=r"train\.batch_size: 5 does not divide over 2 ranks"):
        on_two_ranks(str(run_file("sft", batch_size=5, micro_batch_size=5)))


def test_packed_weights_are_not_sent_around(tmp_path: Path) -> None:
    """Buffers are the same on all ranks; sending them before each forward would cost most of it."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1
    )
    try:
        parallel = Parallel(torch.nn.BatchNorm1d(2))
        parallel.replicate()
        assert not parallel._call.will_sync_module_buffers()
    finally:
        distributed.destroy_process_group()
