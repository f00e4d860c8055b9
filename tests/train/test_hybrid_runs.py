"""Runs of a model that no family has: layers with a state beside layers of attention."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from test_bad_input import go

import culm


def test_it_is_trained_resumed_adapted_and_speaks(
    stage: Callable[..., dict], tmp_path: Path, capsys
) -> None:
    settings = stage("pretrain", steps=6, checkpoint={"every_steps": 2})
    window = {"kind": "gqa", "heads": 4, "window": 16}
    settings["model"] = {
        **settings["model"], "attention": [{"kind": "deltanet", "heads": 4}, window]
    }  # fmt: skip
    go({**settings, "folder": str(tmp_path / "whole")}, attention_backend="sdpa")
    assert "Attention backend: sdpa." in capsys.readouterr().err
    go({**settings, "folder": str(tmp_path / "parts")}, attention_backend="sdpa", steps=4)
    go({**settings, "folder": str(tmp_path / "parts")}, attention_backend="sdpa")
    whole, parts = (load_file(tmp_path / f / "model/model.safetensors") for f in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    adapted = {key: value for key, value in settings.items() if key not in ("model", "tokenizer")}
    adapted |= {"start": str(tmp_path / "whole"), "folder": str(tmp_path / "adapted")}
    capsys.readouterr()
    assert go(adapted, adapter="lora").finished
    told = capsys.readouterr().err
    assert "model.attention: llama models have no 'deltanet'" in told
    model = culm.load(tmp_path / "adapted")
    assert isinstance(model.generate("a", max_tokens=4), str)
