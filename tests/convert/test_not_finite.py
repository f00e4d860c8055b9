"""A weight that is no number is refused by its name, in every format and in both directions."""

import gguf as library
import pytest
import torch
from safetensors.torch import load_file, save_file
from vocabularies import metadata, scored, written

from culm.adapt.lora import LoRA
from culm.config import SettingError
from culm.convert import gguf, hf, native, peft
from culm.convert.export import write_export
from culm.convert.gguf.vocabulary import read_tokenizer
from culm.convert.load import load_model
from culm.convert.weights import set_precision

NAME = "blocks.1.mlp.down.weight"
WRITERS = {
    "hf": lambda m, t, out: hf.export(m, t, out / "out"),
    "hf in bfloat16": lambda m, t, out: hf.export(m, t, out / "out", torch.bfloat16),
    "f32": lambda m, t, out: gguf.export(m, t, out / "out.gguf", "f32"),
    "f16": lambda m, t, out: gguf.export(m, t, out / "out.gguf", "f16"),
    "q8_0": lambda m, t, out: gguf.export(m, t, out / "out.gguf", "q8_0"),
    "ours": lambda m, t, out: native.save(m, t, out / "out"),
}


def broken(model, value, name=NAME):
    with torch.no_grad():
        model.get_parameter(name)[3, 5] = value
    return model


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("writer", WRITERS)
def test_none_is_written(tiny, tokenizer, tmp_path, writer, value):
    words = r"(down|down_proj|ffn_down)\.weight contains NaN or infinity; use an earlier"
    with pytest.raises(SettingError, match=words):
        WRITERS[writer](broken(tiny(), value), tokenizer, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("part", ["a", "b"])
def test_no_adapter_is_written(tiny, tmp_path, part):
    model, lora = tiny(), LoRA(rank=2)
    lora.apply(model, 0)
    with torch.no_grad():
        model.get_submodule("blocks.0.mlp.up").get_parameter(part)[1, 1] = torch.nan
    kind = part.upper()
    with pytest.raises(SettingError, match=rf"layers\.0\.mlp\.up_proj\.lora_{kind}.* contains NaN"):
        peft.save(model, lora, tmp_path / "out", None)
    assert not list(tmp_path.iterdir())


def test_a_number_that_is_too_large_is_refused(tiny, tokenizer, tmp_path):
    """It would become infinite in the file."""
    model = broken(tiny(), 1e5)
    with pytest.raises(SettingError, match=r"down_proj\.weight: 1e\+05 is more than float16 can"):
        hf.export(model, tokenizer, tmp_path / "out", torch.float16)
    with pytest.raises(SettingError, match=r"down\.weight: 1e\+05 is more than F16 can store"):
        gguf.export(model, tokenizer, tmp_path / "out.gguf", "f16")
    with pytest.raises(SettingError, match=r"there: blocks\.1\.mlp\.down\.weight: 1e\+05 is more"):
        set_precision(model, torch.float16, "there")
    hf.export(model, tokenizer, tmp_path / "out", torch.bfloat16)
    again = load_model(tmp_path / "out")[0].get_parameter(NAME)
    assert again[3, 5].item() == pytest.approx(1e5, rel=0.01)


def test_a_number_that_is_too_large_for_a_folder_of_ours(tiny, tokenizer, tmp_path):
    """Which a model without a family becomes."""
    model = broken(tiny(residual={"gains": True}), 1e5)
    with pytest.raises(SettingError, match="more than float16 can store; use float32"):
        write_export(model, tokenizer, tmp_path / "out", "float16")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_none_is_read(tiny, tokenizer, tmp_path, value):
    hf.export(tiny(), tokenizer, tmp_path / "hf")
    held = load_file(tmp_path / "hf" / "model.safetensors")
    held["model.layers.1.mlp.down_proj.weight"][3, 5] = value
    save_file(held, tmp_path / "hf" / "model.safetensors")
    gguf.export(tiny(), tokenizer, tmp_path / "m.gguf", "f32")
    stored = library.GGUFReader(tmp_path / "m.gguf", "r+").tensors
    tensor = next(each for each in stored if each.name == "blk.1.ffn_down.weight")
    tensor.data[3, 5] = value
    tensor.data.flush()
    for path in (tmp_path / "hf", tmp_path / "m.gguf"):
        with pytest.raises(SettingError, match=rf"{path.name}: tensor {NAME} contains NaN"):
            load_model(path)


def test_a_score_that_is_no_number_is_refused(tmp_path):
    path = written(scored(prefix=True), tmp_path / "m.gguf")
    fields = metadata(path)
    scores = list(fields["tokenizer.ggml.scores"])
    scores[300] = float("nan")
    with pytest.raises(SettingError, match=r"m\.gguf: tokenizer\.ggml\.tokens: .* score of .* NaN"):
        read_tokenizer({**fields, "tokenizer.ggml.scores": scores}, path)
