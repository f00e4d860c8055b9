"""Exports of models that no other library has."""

import pytest
import torch

from culm.config import SettingError, parse
from culm.convert import native
from culm.convert.export import export, write_export
from culm.convert.family import NoFamilyError
from culm.model.transformer import TransformerConfig
from culm.text.load import load


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    values = {
        "vocabulary": 350,
        "width": 32,
        "layers": 2,
        "attention": [{"kind": "deltanet", "heads": 2}, {"kind": "gqa", "heads": 2}],
    }
    folder = tmp_path_factory.mktemp("pack") / "model"
    native.save(parse(TransformerConfig, values).build(seed=0), tokenizer, folder)
    return folder


def test_a_model_without_a_family_travels_as_a_folder_of_ours(model, tmp_path, capsys):
    out = export(model, tmp_path / "out", "float32")
    told = capsys.readouterr().err
    assert "a folder of Culm's own; transformers, vLLM and llama.cpp will not load it" in told
    assert "model.attention: llama models have no 'deltanet'" in told
    assert "will not load it. model.attention" in (out / "README.md").read_text()
    ids = [1, 2, 3, 4]
    assert torch.equal(load(out).logits(ids), load(model).logits(ids))
    half = export(model, tmp_path / "half")
    assert native.load(half)[0].dtype == torch.bfloat16


def test_no_other_form_is_written_instead(model, tmp_path):
    with pytest.raises(SettingError, match="llama models have no 'deltanet'"):
        export(model, tmp_path / "m.gguf")
    loaded, tokenizer = native.load(model)
    with pytest.raises(NoFamilyError, match="llama models have no 'deltanet'"):
        write_export(loaded, tokenizer, tmp_path / "out", "float32", family="llama")
    assert not list(tmp_path.iterdir())
