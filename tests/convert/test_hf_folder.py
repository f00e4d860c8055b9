"""Folders of others: several files of weights, fields that are no settings, missing rows."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from culm.config import SettingError
from culm.convert import gguf, hf, native
from culm.convert.export import export
from culm.convert.load import load_model
from culm.tokenizer.generation import NAMES as GENERATION_SETTINGS
from culm.verbs.import_model import import_model

transformers = pytest.importorskip("transformers")


@pytest.fixture
def folder(tiny, tokenizer, tmp_path):
    """A folder in one file."""
    hf.export(tiny(), tokenizer, tmp_path / "out")
    return tmp_path / "out"


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def logits(path, tokens):
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        return model(tokens).logits


@pytest.mark.parametrize("kept", ["shards", "no shards", "broken index"])
@pytest.mark.parametrize("older", ["model.safetensors", "pytorch_model.bin"])
def test_a_single_file_counts_more_than_an_index(
    folder, tiny, tokenizer, tokens, tmp_path, kept, older, capsys
):
    """An older save of several files left its index."""
    torch.manual_seed(1)
    model = tiny(tied=False)
    with torch.no_grad():
        model.embed.weight.mul_(2.0)
    hf.export(model, tokenizer, tmp_path / "old", shard_bytes=60_000)
    for file in (tmp_path / "old").glob("model-*"):
        if kept == "shards":
            (folder / file.name).write_bytes(file.read_bytes())
    index = (tmp_path / "old" / "model.safetensors.index.json").read_bytes()
    (folder / f"{older}.index.json").write_bytes(b"{" if kept == "broken index" else index)
    ours = load_model(folder)[0](tokens)
    assert (ours - logits(folder, tokens)).abs().max() <= 1e-4
    assert torch.equal(ours, tiny()(tokens))
    said = f"model.safetensors is read, and not the files that {older}.index.json lists"
    assert (said in capsys.readouterr().err) == (older == "model.safetensors")


def shards(folder, model, tokenizer):
    """The files and index of a folder in several files."""
    hf.export(model, tokenizer, folder, shard_bytes=60_000)
    index = folder / "model.safetensors.index.json"
    return sorted(folder.glob("model-*.safetensors")), index


def test_a_tensor_is_read_from_the_file_that_the_index_names(tiny, tokenizer, tokens, tmp_path):
    """An older copy in a file of other tensors, and an index that names a file without it."""
    files, index = shards(tmp_path / "there", tiny(), tokenizer)
    first, last = load_file(files[0]), load_file(files[-1])
    name, tensor = next(iter(first.items()))
    save_file({**last, name: tensor + 1}, files[-1])
    assert torch.equal(load_model(tmp_path / "there")[0](tokens), tiny()(tokens))
    places = json.loads(index.read_text())["weight_map"]
    change(index, weight_map={**places, name: files[-1].name})
    assert not torch.equal(load_model(tmp_path / "there")[0](tokens), tiny()(tokens))
    save_file(last, files[-1])
    assert torch.equal(load_model(tmp_path / "there")[0](tokens), tiny()(tokens))


def test_what_is_not_read_of_a_file_is_reported(tiny, tokenizer, tmp_path, capsys):
    files, _ = shards(tmp_path / "there", tiny(), tokenizer)
    name, tensor = next(iter(load_file(files[0]).items()))
    save_file({**load_file(files[-1]), name: tensor}, files[-1])
    load_model(tmp_path / "there")
    said = f"{files[-1]}: 1 tensors are not read: model.safetensors.index.json names other files"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("places", [{}, [], None, {"a": 3}, "x"])
def test_an_index_that_names_no_files(tiny, tokenizer, tmp_path, places):
    _, index = shards(tmp_path / "there", tiny(), tokenizer)
    change(index, weight_map=places)
    with pytest.raises(SettingError, match=r"index\.json: broken: weight_map names no files"):
        load_model(tmp_path / "there")


# Plausible values of settings that a file may have and a model does not read.
FIELDS = {
    "tokenizer_class": "LlamaTokenizer",
    "max_sequence_length": 2048,
    "max_length": 4096,
    "do_sample": True,
    "temperature": 0.6,
    "use_flash_attn": True,
    "attn_implementation": "eager",
    "repetition_penalty": 1.1,
    "gradient_checkpointing": True,
    "torchscript": True,
    "suppress_tokens": [3],
    "sep_token_id": 5,
    "transformers_version": "4.20.0",
}


def test_fields_that_are_no_settings_of_the_model(folder, tokens):
    expected = load_model(folder)[0](tokens)
    change(folder / "config.json", **FIELDS)
    assert torch.equal(load_model(folder)[0](tokens), expected)
    assert (logits(folder, tokens) - expected).abs().max() <= 1e-4
    theirs = {name for name in transformers.GenerationConfig().to_dict() if name[:1] != "_"}
    assert theirs - {"transformers_version"} <= GENERATION_SETTINGS


@pytest.mark.parametrize(
    "field",
    [{"sliding_window": 8}, {"mlp_bias": True}, {"new_kind_of_gate": "on"}, {"scale_depth": 1.4}],
)
def test_what_may_change_the_model_is_refused_with_a_remedy(folder, field):
    change(folder / "config.json", **field)
    with pytest.raises(SettingError, match=r"is not known here and .*; remove it from the"):
        load_model(folder)


def test_a_padding_token_without_a_row(tiny, tokens, tokenizer, tmp_path, capsys):
    """As a folder to which `[PAD]` was added without a larger embedding."""
    model = tiny(vocabulary=300)
    hf.export(model, tokenizer, tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    theirs.add_special_tokens({"pad_token": "[PAD]"})
    theirs.save_pretrained(tmp_path / "out")
    again, ours = load_model(tmp_path / "out")
    assert "out: [PAD] left out: the model has 300 rows" in capsys.readouterr().err
    assert torch.equal(again(tokens), model(tokens))
    assert ours.vocabulary == 300
    text = "Once upon [PAD]"
    assert ours.encode(text, specials=True) == tokenizer.encode(text)
    import_model(tmp_path / "out", tmp_path / "culm")
    assert native.load(tmp_path / "culm")[1].fingerprint == ours.fingerprint


GENERATION = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.05}


@pytest.mark.parametrize("way", ["hf", "culm", "gguf"])
@pytest.mark.parametrize("place", ["generation_config.json", "config.json"])
def test_generation_settings_survive_a_conversion(folder, tmp_path, way, place):
    """To a folder of transformers, on a direct way, through Culm's own and through a GGUF."""
    (folder / "generation_config.json").unlink()
    if place == "generation_config.json":
        (folder / place).write_text("{}")
    ends = [5, 7, 0]
    change(folder / place, **GENERATION, eos_token_id=ends)
    change(folder / "config.json", bos_token_id=7, pad_token_id=9)
    source = folder
    if way == "culm":
        import_model(folder, tmp_path / "culm")
        source = tmp_path / "culm"
    elif way == "gguf":
        source = tmp_path / "m.gguf"
        gguf.export(*load_model(folder), source, "f32")
    export(source, tmp_path / "again")
    found = transformers.GenerationConfig.from_pretrained(tmp_path / "again")
    assert {name: getattr(found, name) for name in GENERATION} == GENERATION
    assert set(ends) <= set(found.eos_token_id)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "again")
    assert (found.bos_token_id, found.pad_token_id) == (7, 9)
    assert (config.bos_token_id, config.pad_token_id) == (7, 9)
    if way != "gguf":
        assert set(found.eos_token_id) == load_model(folder)[1].stop_ids
