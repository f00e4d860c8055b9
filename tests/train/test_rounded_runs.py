"""Runs that train weights as they will be rounded: `train.qat`."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_bad_input import go

from culm.adapt.quantize.int4 import Int4, Int4Linear
from culm.adapt.quantize.int8 import Int8Linear
from culm.adapt.quantize.qat import FakeQuantizedLinear
from culm.config import SettingError
from culm.convert import native
from culm.files import read_lines
from culm.model.linear import Linear
from culm.train.checkpoint.folder import steps_in

MIXED = ["int4", {"kind": "int8", "targets": "head"}]


@pytest.mark.parametrize("name", ["pretrain", "sft", "dpo", "grpo"])
def test_every_stage_ends_with_a_quantised_model(name, stage: Callable[..., dict], tmp_path: Path):
    settings = stage(name, qat=MIXED)
    assert go({**settings, "folder": str(tmp_path / "run")}).finished
    model, _ = native.load(tmp_path / "run" / "model")
    layers = [m for m in model.modules() if isinstance(m, Int4Linear | Int8Linear | Linear)]
    assert [type(layer) for layer in layers] == [Int4Linear] * 14 + [Int8Linear]


def test_what_is_written_is_what_was_measured(stage: Callable[..., dict], tmp_path: Path):
    """The held-out loss of the run is that of the model in its folder."""
    settings = stage("pretrain", qat=MIXED, steps=20)
    go({**settings, "folder": str(tmp_path / "run")})
    told = read_lines(tmp_path / "run" / "eval.jsonl")[-1]["loss"]
    plain = stage("sft")  # one step that changes nothing, and the same text
    plain["data"], plain["start"] = settings["data"], str(tmp_path / "run")
    plain["train"] |= {"adapter": "lora", "steps": 1, "optimizer": {"kind": "adamw", "rate": 1e-9}}
    plain["train"]["batch_size"] = settings["train"]["batch_size"]
    go({**plain, "folder": str(tmp_path / "again")})
    again = read_lines(tmp_path / "again" / "eval.jsonl")[-1]["loss"]
    assert again == pytest.approx(told, abs=1e-4)


def test_an_interrupted_run_goes_on(stage: Callable[..., dict], tmp_path: Path):
    settings = stage("sft", qat="int4", steps=6, checkpoint={"every_steps": 2})
    go({**settings, "folder": str(tmp_path / "whole")})
    go({**settings, "folder": str(tmp_path / "parts")}, steps=4)
    assert go({**settings, "folder": str(tmp_path / "parts")}).finished
    assert steps_in(tmp_path / "parts")[-1] == 6
    whole, parts = (load_file(tmp_path / f / "model/model.safetensors") for f in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    with pytest.raises(SettingError, match=r"train\.qat"):
        go({**settings, "folder": str(tmp_path / "parts")}, qat="int8", steps=8)


def test_blocks_compile():
    """Nothing in a rounded layer breaks the graph of a block."""
    torch._dynamo.reset()
    layer = FakeQuantizedLinear(Linear(32, 32), Int4())
    layer.weight.data.normal_()
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    x = torch.randn(3, 32)
    assert torch.equal(compiled(x), layer(x))
    compiled(x).sum().backward()
    assert layer.weight.grad.any()


def test_quantised_weights_are_no_start(stage: Callable[..., dict], tmp_path: Path):
    go({**stage("sft", qat="int8"), "folder": str(tmp_path / "one")})
    settings = {**stage("sft", qat="int8"), "start": str(tmp_path / "one")}
    with pytest.raises(SettingError, match="quantised weights cannot be trained"):
        go({**settings, "folder": str(tmp_path / "two")})
