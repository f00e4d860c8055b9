"""`culm.load`: what it finds, and how it names what it cannot read."""

import json
import subprocess
import sys

import pytest
import torch

import culm
from culm.config import SettingError
from culm.convert import native
from culm.model.attention.gqa import GQA
from culm.model.transformer import TransformerConfig
from culm.text.language_model import LanguageModel
from culm.text.load import load


def test_load_names_what_it_cannot_read(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(SettingError, match="no such file"):
        load(tmp_path / "missing")
    for name in ("empty", "notes.txt"):
        with pytest.raises(SettingError, match=f"{name}: not a readable model; known: a run"):
            load(tmp_path / name)
    (tmp_path / "stories.bin").write_bytes(b"")
    with pytest.raises(SettingError, match=r"culm import .*stories\.bin OUT --tokenizer"):
        load(tmp_path / "stories.bin")
    with pytest.raises(SettingError, match="device: 'abacus'"):
        load(tmp_path, device="abacus")
    with pytest.raises(SettingError, match="dtype: 'int3'"):
        load(tmp_path, dtype="int3")


@pytest.fixture
def folder(tmp_path, tokenizer):
    """A run folder."""
    config = TransformerConfig(
        vocabulary=tokenizer.vocabulary, width=16, layers=1, attention=(GQA(heads=2),)
    )
    native.save(config.build(), tokenizer, tmp_path / "model")
    return tmp_path


def test_load_finds_the_model_of_a_run_and_sets_its_precision(folder):
    plain = culm.load(folder, device="cpu")
    assert plain.model.embed.weight.dtype == plain.model.dtype == torch.float32
    assert plain.model.head.weight is plain.model.embed.weight
    half = culm.load(folder / "model", device="cpu", dtype="bfloat16")
    assert half.model.embed.weight.dtype == half.model.dtype == torch.bfloat16
    assert half.model.rotations[0].frequencies.dtype == torch.float32
    torch.testing.assert_close(half.logits([1, 2]), plain.logits([1, 2]), atol=0.05, rtol=0)
    assert culm.load(folder, device="cpu", dtype="bf16").model.dtype == torch.bfloat16
    with pytest.raises(SettingError, match="dtype: float16"):
        culm.load(folder, device="cpu", dtype="float16")


@pytest.mark.parametrize("fastest", ["bf16", "fp32"])
def test_load_takes_the_fastest_precision_where_asked(folder, monkeypatch, fastest):
    monkeypatch.setattr("culm.convert.load.choose_precision", lambda device: fastest)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[fastest]
    model = culm.load(folder, device="cpu", dtype="auto").model
    assert model.dtype == model.embed.weight.dtype == dtype


def test_import_is_light():
    code = (
        "import sys, json, culm; culm.__version__;"
        "print(json.dumps([m for m in ('torch', 'numpy', 'fastapi') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
    assert culm.load is load
    assert culm.LanguageModel is LanguageModel
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = culm.lode
