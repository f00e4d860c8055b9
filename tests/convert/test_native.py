"""Culm folders: bit-exact, complete, and never silently broken."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from culm import safetensors as tensors
from culm.adapt.lora import LoRA
from culm.adapt.quantize.fp8 import FP8
from culm.adapt.quantize.int4 import Int4
from culm.adapt.quantize.int8 import Int8
from culm.adapt.quantize.nf4 import NF4
from culm.adapt.quantize.w8a8 import W8A8
from culm.atomic import FRESH
from culm.config import SettingError
from culm.convert import native


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "quantizer",
    [None, Int8(), Int4(), NF4(block=32), W8A8(), FP8(), Int8(targets="blocks.*.mlp.*")],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_roundtrip_is_bit_exact(tiny, tokenizer, tokens, tmp_path, tied, quantizer, dtype):
    model = tiny(tied=tied)
    model.dtype = dtype
    if quantizer:
        quantizer.apply(model)
    native.save(model, tokenizer, tmp_path / "model")
    again, its_tokenizer = native.load(tmp_path / "model")
    assert again.config == model.config
    assert torch.equal(again(tokens), model(tokens))
    assert torch.equal(again(tokens[:1, :1]), model(tokens[:1, :1]))  # the packed kernels
    assert its_tokenizer.fingerprint == tokenizer.fingerprint
    if again.config.tied:
        assert again.head.weight is again.embed.weight


def test_bf16_weights_stay_bf16(tiny, tokenizer, tokens, tmp_path):
    model = tiny()
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    native.save(model, tokenizer, tmp_path / "model")
    again, _ = native.load(tmp_path / "model")
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    assert torch.equal(again(tokens), model(tokens))


def test_a_tied_head_is_stored_once(tiny, tokenizer, tmp_path):
    native.save(tiny(tied=True), tokenizer, tmp_path / "tied")
    native.save(tiny(tied=False), tokenizer, tmp_path / "untied")
    sizes = [(tmp_path / n / native.WEIGHTS).stat().st_size for n in ("tied", "untied")]
    assert sizes[1] - sizes[0] > 320 * 64 * 4 - 200


def test_saving_again_replaces_all_files(tiny, tokenizer, tokens, tmp_path):
    native.save(tiny(), tokenizer, tmp_path / "model")
    second = tiny(layers=3)
    native.save(second, tokenizer, tmp_path / "model")
    assert torch.equal(native.load(tmp_path / "model")[0](tokens), second(tokens))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_with_other_files_is_left_alone(tiny, tokenizer, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SettingError, match="holds other files"):
        native.save(tiny(), tokenizer, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_disk_full_keeps_the_old_model(tiny, tokenizer, tokens, tmp_path, monkeypatch):
    old = tiny()
    native.save(old, tokenizer, tmp_path / "model")

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensors, "save_file", full)
    with pytest.raises(OSError, match=r"model: could not be written \(No space left on device\)"):
        native.save(tiny(layers=3), tokenizer, tmp_path / "model")
    assert torch.equal(native.load(tmp_path / "model")[0](tokens), old(tokens))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_parent_that_is_a_file(tiny, tokenizer, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="could not be written"):
        native.save(tiny(), tokenizer, tmp_path / "file" / "model")


def test_adapters_must_be_merged(tiny, tokenizer, tmp_path):
    model = tiny()
    LoRA().apply(model, seed=0)
    with pytest.raises(SettingError, match="merge them first"):
        native.save(model, tokenizer, tmp_path / "model")


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny, tokenizer):
    folder = tmp_path_factory.mktemp("saved") / "model"
    native.save(tiny(), tokenizer, folder)
    return folder


def rewrite(folder, **changes):
    """Change model.json as someone would who also knows its digest."""
    values = json.loads((folder / native.SETTINGS).read_text())
    del values["digest"]
    values.update(changes)
    text = json.dumps({**values, "digest": native._digest(values)})
    (folder / native.SETTINGS).write_text(text)


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


@pytest.mark.parametrize("name", [native.SETTINGS, native.WEIGHTS, "tokenizer.json"])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(SettingError, match=f"{name}: there is no such file"):
        native.load(copy)


def test_a_missing_folder(tmp_path):
    with pytest.raises(SettingError, match="nowhere: there is no such folder"):
        native.load(tmp_path / "nowhere")


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(0, 8), which=st.integers(0, 2))
def test_no_damage_goes_unseen(saved, tmp_path_factory, place, flip, which):
    """A flipped bit, or with flip=8 a cut, anywhere in a file that matters."""
    copy = shutil.copytree(saved, tmp_path_factory.mktemp("damage") / "copy")
    path = copy / [native.SETTINGS, native.WEIGHTS, "tokenizer.json"][which]
    content = bytearray(path.read_bytes())
    at = int(place * len(content.rstrip()))
    if flip == 8:
        del content[at:]
    else:
        content[at] ^= 1 << flip
    path.write_bytes(content)
    with pytest.raises(SettingError, match=path.name):
        native.load(copy)


def reseal(copy):
    rewrite(copy, sha256={n: native.sha256(copy / n) for n in native.GUARDED})


@pytest.mark.parametrize("length", [0, 4, 8, 300, 5000, -1])
def test_truncated_weights_with_a_right_digest(copy, length):
    path = copy / native.WEIGHTS
    path.write_bytes(path.read_bytes()[:length])
    reseal(copy)
    with pytest.raises(SettingError, match=r"model\.safetensors: broken or no safetensors file"):
        native.load(copy)


def test_another_shape_names_the_tensor_and_both_shapes(copy):
    config = json.loads((copy / native.SETTINGS).read_text())["model"]
    rewrite(copy, model={**config, "width": 128})
    with pytest.raises(SettingError, match=r"tensor \S+ has shape \(.*64.*\), its settings say \("):
        native.load(copy)


def test_weights_that_are_no_numbers(tiny, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(native, "cast", lambda tensor, *_: tensor)  # which refuses to write them
    for value in (float("nan"), float("inf")):
        model = tiny()
        with torch.no_grad():
            model.blocks[1].mlp.down.weight[3, 5] = value
        native.save(model, tokenizer, tmp_path / "model")
        with pytest.raises(SettingError, match=r"blocks\.1\.mlp\.down\.weight contains NaN"):
            native.load(tmp_path / "model")


def test_an_interruption_between_the_old_and_the_new_loses_neither(
    tiny, tokenizer, tokens, tmp_path, monkeypatch
):
    model, replace = tiny(), os.replace
    native.save(model, tokenizer, tmp_path / "model")

    def interrupted(source, target):
        if Path(source).name == FRESH:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            native.save(tiny(layers=1), tokenizer, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert torch.equal(native.load(tmp_path / "model")[0](tokens), model(tokens))


def test_a_link_to_a_folder_stays_one(tiny, tokenizer, tmp_path):
    native.save(tiny(layers=1), tokenizer, tmp_path / "model")
    (tmp_path / "link").symlink_to("model")
    native.save(tiny(), tokenizer, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert native.load(tmp_path / "model")[0].config.layers == 2


def test_missing_and_extra_tensors(copy):
    config = json.loads((copy / native.SETTINGS).read_text())["model"]
    rewrite(copy, model={**config, "layers": 3})
    with pytest.raises(SettingError, match=r"9 are missing: blocks\.#\."):
        native.load(copy)
    rewrite(copy, model={**config, "layers": 1})
    with pytest.raises(SettingError, match=r"9 are unknown: blocks\.#\."):
        native.load(copy)


def test_integers_for_weights(copy):
    rewrite(copy, quantized={"blocks.0.mlp.up": {"kind": "int8"}})
    with pytest.raises(SettingError, match=r"up\.weight holds float32, not"):
        native.load(copy)
    rewrite(copy, quantized={"blocks.7.mlp.up": {"kind": "int8"}})
    with pytest.raises(
        SettingError, match=r"blocks\.7\.mlp\.up is quantised there but is not a layer"
    ):
        native.load(copy)


def test_a_format_of_the_future_and_a_wrong_setting(copy):
    rewrite(copy, format=2)
    with pytest.raises(SettingError, match="format 2 is not known"):
        native.load(copy)
    rewrite(copy, format=1, model={"width": 8})
    with pytest.raises(SettingError, match=r"model\.vocabulary: this setting is needed"):
        native.load(copy)


def test_a_vocabulary_smaller_than_the_tokenizer(tiny, tokenizer, tmp_path):
    native.save(tiny(vocabulary=256), tokenizer, tmp_path / "model")
    with pytest.raises(SettingError, match="the tokenizer has 300 ids, the model's"):
        native.load(tmp_path / "model")


def test_packed_layers_are_built_packed(tiny, tokenizer, tmp_path):
    model = tiny()
    Int8().apply(model)
    native.save(model, tokenizer, tmp_path / "packed")
    up = native.load(tmp_path / "packed")[0].blocks[0].mlp.up
    assert up.weight.dtype == torch.int8
    assert not list(up.parameters())


@pytest.mark.skipif(os.name == "nt", reason="modes")
def test_weights_are_readable_by_whom_other_files_are(tiny, tokenizer, tmp_path):
    native.save(tiny(), tokenizer, tmp_path / "model")
    modes = {path.stat().st_mode for path in (tmp_path / "model").iterdir()}
    assert len(modes) == 1
