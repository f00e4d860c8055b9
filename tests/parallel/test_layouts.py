"""The same model by each layout: the same steps as in one process."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from stages import STAGES
from test_ranks import assert_same, on_two_ranks

from culm.adapt.quantize.int8 import Int8
from culm.adapt.quantize.linear import QuantizedGrouped
from culm.config import SettingError, parse
from culm.model.transformer import TransformerConfig
from culm.parallel.check import check_layout
from culm.parallel.settings import ParallelConfig
from culm.run.settings import read_run
from culm.run.train import train

TWO = [
    "dense,tensor=2", "lora,tensor=2", "moe,context=2", "latent,context=2", "moe,expert=2",
    "dense,pipeline=2",
]  # fmt: skip
MORE_OF_TWO = [
    *(f"{name},tensor=2" for name in ("gpt2", "sinks", "latent", "moe", "state", "alibi")),
    *(f"{name},context=2" for name in ("dense", "gpt2", "sinks", "alibi", "lora")),
    *(
        f"{name},context=2,context_method=ulysses"
        for name in ("sinks", "latent", "alibi", "moe", "lora")
    ),
    *(f"{name},context=2,context_method=ring" for name in ("dense", "sinks", "alibi", "latent")),
    *(f"oss,{axis}=2,expert=2" for axis in ("tensor", "context")),
    "oss,data=fsdp,expert=2",
    *(
        f"{name},pipeline=2"
        for name in ("moe", "lora", "latent", "gpt2", "sinks", "state", "alibi")
    ),
    *(
        f"{name},pipeline=2,pipeline_schedule={schedule}"
        for name, schedule in (
            ("dense", "gpipe"),
            ("dense", "zero_bubble"),
            ("lora", "zero_bubble"),
            ("mla", "zero_bubble"),
            ("moe", "zero_bubble"),
            ("dense", "interleaved"),
            ("moe", "interleaved"),
            ("latent", "interleaved"),
        )
    ),
]
FOUR = [
    *(f"{name},data=fsdp,tensor=2" for name in ("dense", "moe", "lora", "latent")),
    *(f"{name},data=ddp,tensor=2" for name in ("dense", "moe")),
    *(f"{name},tensor=2,context=2" for name in ("dense", "moe", "latent", "lora")),
    *(f"{name},data=fsdp,replicas=2" for name in ("dense", "moe", "lora")),
    *(f"dense,data={data},context=2" for data in ("ddp", "fsdp")),
    "latent,tensor=2,context=2,context_method=ulysses", "state,tensor=4",
    "sinks,context=4,context_method=ring",
    "oss,expert=4", "oss,expert=2", "oss,data=fsdp,expert=2", "oss,data=fsdp,replicas=2,expert=2",
    "oss,data=fsdp,tensor=2,expert=2", "oss,data=fsdp,tensor=2,expert=4",
    "oss,tensor=2,context=2,expert=4",
    "oss4,tensor=4,expert=2", "oss4,data=fsdp,tensor=4,expert=2",
    *(f"{name},pipeline=2,data=fsdp" for name in ("dense", "moe", "lora", "latent")),
    *(f"{name},pipeline=2,tensor=2" for name in ("dense", "moe", "latent")),
    "dense,pipeline=2,data=ddp", "dense,pipeline=2,context=2", "dense,pipeline=4",
    "oss,pipeline=2,data=fsdp,expert=2",
    "dense,pipeline=2,tensor=2,pipeline_schedule=zero_bubble",
    *(f"{name},pipeline=2,data=fsdp,pipeline_schedule=interleaved" for name in ("dense", "moe")),
]  # fmt: skip


def follow_one_process(ranks: int, *layouts: str) -> None:
    script = Path(__file__).with_name("layouts.py")
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}"]
    done = subprocess.run(
        [*command, "--standalone", str(script), *layouts],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("same ") == len(layouts)


def test_two_ranks_of_a_model_follow_one_process() -> None:
    follow_one_process(2, *TWO)


@pytest.mark.slow
def test_all_models_follow_one_process_on_two_ranks() -> None:
    follow_one_process(2, *MORE_OF_TWO)


@pytest.mark.slow
def test_a_plan_knows_what_ranks_send() -> None:
    follow_one_process(2, *(f"traffic:{layout}" for layout in ("dense,tensor=2", "moe,data=fsdp")))


@pytest.mark.slow
def test_a_plan_knows_what_two_ranks_send() -> None:
    layouts = ("oss,data=fsdp,expert=2", "dense,context=2,data=fsdp", "dense,pipeline=2")
    follow_one_process(2, *(f"traffic:{layout}" for layout in layouts))


@pytest.mark.slow
def test_a_plan_knows_what_four_ranks_send() -> None:
    layouts = [
        "dense,data=fsdp", "dense,data=fsdp,tensor=2", "dense,data=fsdp,replicas=2",
        "moe,tensor=2,context=2", "latent,data=ddp,tensor=2", "oss,data=fsdp,expert=2",
        "dense,context=4,context_method=ring,data=fsdp",
        "latent,context=4,context_method=ulysses,data=fsdp",
        "dense,pipeline=2,data=fsdp", "oss4,data=ddp,tensor=4,expert=2",
        "oss4,data=fsdp,tensor=4,expert=2",
    ]  # fmt: skip
    follow_one_process(4, *(f"traffic:{layout}" for layout in layouts))


@pytest.mark.slow
def test_products_of_axes_follow_one_process() -> None:
    follow_one_process(4, *FOUR)


@pytest.mark.slow
def test_copies_of_experts_in_a_pipeline_follow_one_process() -> None:
    """Two stages of four ranks, which have two copies of each expert, and one of all else."""
    follow_one_process(8, "oss4,pipeline=2,tensor=4,expert=2")


def follow_one_run(
    run_file: Callable[..., Path], layout: str, stages: tuple[str, ...], **train_settings: object
) -> None:
    """Whole runs, with evaluation, export and what on-policy stages sample."""
    files = {name: run_file(name, steps=3, **train_settings) for name in stages}
    on_two_ranks(*(f"{file},{layout},folder={file}-two" for file in files.values()))
    for file in files.values():
        config, _ = read_run(str(file))
        train(config)
        assert_same(Path(config.folder), Path(f"{file}-two"))


@pytest.mark.slow
def test_runs_with_tensor_parallelism_follow_one_process(run_file: Callable[..., Path]) -> None:
    follow_one_run(run_file, "parallel.tensor=2", ("dpo",))


@pytest.mark.slow
def test_runs_with_a_pipeline_follow_one_process(run_file: Callable[..., Path]) -> None:
    follow_one_run(run_file, "parallel.pipeline=2", ("sft", "dpo"))


@pytest.mark.slow
def test_a_run_moves_between_a_pipeline_and_other_layouts(run_file: Callable[..., Path]) -> None:
    """Two ranks of a pipeline, one process, two ranks of FSDP2, and the pipeline again."""
    file = run_file("pretrain", steps=8)
    folder, layouts = f"folder={file}-two", ("parallel.pipeline=2", "parallel.data=fsdp")
    on_two_ranks(f"{file},{folder},{layouts[0]},train.steps=2")
    train(read_run(str(file), [folder, "train.steps=4"])[0])
    on_two_ranks(
        f"{file},{folder},{layouts[1]},train.steps=6", f"{file},{folder},{layouts[0]}"
    )  # fmt: skip
    config, _ = read_run(str(file))
    train(config)
    assert_same(Path(config.folder), Path(f"{file}-two"))


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["tensor", "context", "pipeline"])
def test_every_stage_follows_one_process(run_file: Callable[..., Path], axis: str) -> None:
    # gkd starts at its teacher here, where its gradient is nothing but rounding.
    stages = tuple(name for name in STAGES if name != "gkd")
    follow_one_run(run_file, f"parallel.{axis}=2", stages)


MODEL = {"vocabulary": 64, "width": 48, "layers": 1, "context": 32,
         "attention": {"kind": "gqa", "heads": 4, "kv_heads": 2}}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "layout", "message"),
    [
        ({}, {"tensor": 4}, "4 ranks do not divide the 2 heads"),
        ({"mlp": {"kind": "swiglu", "hidden": 33}}, {"tensor": 2}, "do not divide the 33 elements"),
        ({"attention": {"kind": "deltanet", "heads": 2}}, {"context": 2}, "use tensor or data"),
        ({}, {"expert": 2}, "the model has no experts"),
        (
            {"mlp": {"kind": "moe", "experts": 4, "hidden": 8, "sequence_balance_loss": 0.1}},
            {"tensor": 2},
            "model.mlp.sequence_balance_loss: .* tokens of whole rows",
        ),
        (
            {"mlp": {"kind": "moe", "experts": 4, "hidden": 8, "capacity": 1.5}},
            {"context": 2},
            "model.mlp.capacity: .* tokens of whole rows",
        ),
        (
            {"mlp": {"kind": "moe", "experts": 3, "hidden": 8}},
            {"expert": 2},
            "2 ranks do not divide 3 experts",
        ),
        ({}, {"context": 4, "context_method": "ulysses"}, "4 ranks .* use allgather"),
    ],
)
def test_a_layout_that_does_not_divide_the_model_is_refused(
    model: dict, layout: dict, message: str
) -> None:
    built = parse(TransformerConfig, MODEL | model).build(device="meta")
    with pytest.raises(SettingError, match=message):
        check_layout(built, ParallelConfig(**layout))


def test_packed_experts_are_refused() -> None:
    """Before it reads how many experts they have, which packed ones do not say."""
    moe = {"mlp": {"kind": "moe", "experts": 4, "hidden": 16}}
    built = parse(TransformerConfig, MODEL | moe).build(seed=0)
    packed = [Int8().build(16, 16, bias=False) for _ in range(4)]
    built.blocks[0].mlp.experts.up = QuantizedGrouped(packed, None)
    with pytest.raises(SettingError, match=r"parallel\.expert: QuantizedGrouped cannot be divided"):
        check_layout(built, ParallelConfig(data="fsdp", expert=2))


def test_axes_that_do_not_divide_the_ranks_are_refused() -> None:
    with pytest.raises(SettingError, match="needs a multiple of 4 ranks, and there are 6"):
        ParallelConfig(tensor=2, context=2).data_ranks(6)
    with pytest.raises(SettingError, match=r"parallel\.replicas: 2 copies .* 3 data-parallel"):
        ParallelConfig(data="fsdp", replicas=2).data_ranks(3)
    with pytest.raises(SettingError, match=r"parallel\.expert: 4 times .* does not divide 6 ranks"):
        ParallelConfig(expert=4).data_ranks(6)
    assert ParallelConfig(tensor=2, context=2).data_ranks(8) == 2
