"""GGUF: the numbers that are in the file, what llama.cpp makes of them, and files that lie."""

import struct
from contextlib import suppress

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from culm.adapt.quantize.int8 import Int8
from culm.config import SettingError
from culm.convert import gguf as ours
from culm.convert.export import write_export
from culm.convert.gguf.families.metadata import NAMES as TABLE
from culm.convert.load import load_model
from culm.convert.rules import ModuleNames, half_split, interleaved, renamed
from culm.convert.weights import plain_weights
from culm.model.rope import Rope, rotate
from culm.tokenizer.bytes import Bytes

GQA = {"kind": "gqa", "heads": 4, "kv_heads": 2}
SHAPES = {
    "llama": {"attention": GQA, "tied": True},
    "llama-untied-wide-heads": {"attention": {**GQA, "head_dim": 24}, "tied": False},
    "qwen2": {"attention": {**GQA, "bias": True}, "tied": False},
    "qwen3": {"attention": {**GQA, "qk_norm": "head", "rope": {"base": 5e5}}, "tied": True},
}

NAMES = ModuleNames(renamed(TABLE))


def test_golden_bytes_of_q8_0():
    row = ((np.arange(32) - 15.5) / 8).astype(np.float32)
    golden = "d0238189919aa2aab2bac3cbd3dbe3ecf4fc040c141d252d353d464e565e666f777f"
    assert gguf.quantize(row[None], gguf.GGMLQuantizationType.Q8_0).tobytes().hex() == golden


def test_layouts_are_inverse_and_turn_alike():
    """Neighbours turned in the one layout are halves turned in the other."""
    rows = torch.randn(4 * 16, 8)
    assert torch.equal(half_split(interleaved(rows, 4), 4), rows)
    x, turn = torch.randn(1, 5, 1, 16), Rope().build(16)(torch.arange(5)[None])
    cos, sin = (part[..., None] for part in turn)
    pairs = interleaved(x.transpose(0, 3).flatten(1), 1).view(16, 5).t().view(1, 5, 1, 8, 2)
    first, second = pairs.split(1, -1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), -1).flatten(-2)
    expected = rotate(x, turn)[0, :, 0].t()
    assert torch.allclose(interleaved(expected, 1).t(), turned[0, :, 0], atol=1e-6)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("precision", ["f32", "f16", "q8_0"])
def test_tensors_in_the_file(tiny, tokenizer, tmp_path, name, precision):
    model = tiny(**SHAPES[name])
    ours.export(model, tokenizer, tmp_path / "m.gguf", precision)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    stored = {tensor.name: tensor for tensor in reader.tensors}
    expected = dict(plain_weights(model))
    assert ("output.weight" in stored) == (not model.config.tied)
    assert len(stored) == len(expected)
    for key, tensor in expected.items():
        module, _, part = key.rpartition(".")
        found = stored[f"{NAMES.theirs(module)}.{part}"]
        if name.startswith("llama") and key.endswith((".q.weight", ".k.weight")):
            tensor = interleaved(tensor, 4 if ".q." in key else 2)
        kind = found.tensor_type.name
        assert kind == ("F32" if tensor.dim() == 1 else precision.upper())
        numbers = gguf.dequantize(found.data, found.tensor_type)
        error = np.abs(numbers - tensor.numpy()).max()
        assert error <= {"F32": 0, "F16": 1e-3, "Q8_0": 4e-3}[kind]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("precision", ["f32", "f16", "q8_0"])
def test_load_back(tiny, tokenizer, tokens, tmp_path, name, precision):
    model = tiny(**SHAPES[name])
    ours.export(model, tokenizer, tmp_path / "m.gguf", precision)
    again, words = ours.load(tmp_path / "m.gguf")
    difference = (again(tokens) - model(tokens)).abs().max()
    assert difference <= {"f32": 0, "f16": 1e-2, "q8_0": 6e-2}[precision]
    assert (again.config.norm, again.config.tied) == (model.config.norm, model.config.tied)
    assert again.config.attentions[0].rope == model.config.attentions[0].rope
    assert words.fingerprint == tokenizer.fingerprint
    assert (words.stop_ids, words.template) == (tokenizer.stop_ids, tokenizer.template)


def test_rows_that_do_not_fill_a_block_are_f16(tiny, tokenizer, tmp_path):
    model = tiny(mlp={"kind": "swiglu", "hidden": 80})
    ours.export(model, tokenizer, tmp_path / "m.gguf", "q8_0")
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert kinds["blk.0.ffn_down.weight"] == "F16"
    assert kinds["blk.0.ffn_up.weight"] == "Q8_0"


def test_quantized_model(tiny, tokenizer, tokens, tmp_path):
    model = tiny()
    Int8().apply(model)
    ours.export(model, tokenizer, tmp_path / "m.gguf", "f32")
    again, _ = ours.load(tmp_path / "m.gguf")
    assert (again(tokens) - model(tokens)).abs().max() < 1e-4


def test_tokenizer_in_the_file(tiny, tokenizer, tmp_path):
    ours.export(tiny(), tokenizer, tmp_path / "m.gguf")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    names = fields["tokenizer.ggml.tokens"]
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == ("gpt2", "qwen2")
    assert len(names) == 320
    assert names[-1] == "[PAD319]"
    assert {
        names[i] for i, kind in enumerate(fields["tokenizer.ggml.token_type"]) if kind == 3
    } == {*tokenizer.specials}
    assert fields["tokenizer.ggml.eos_token_id"] == tokenizer.end_of_text
    assert fields["tokenizer.ggml.eot_token_id"] == tokenizer.end_of_turn
    assert fields["tokenizer.ggml.add_bos_token"] is False


def test_bytes_as_tokens(tiny, tokens, tmp_path):
    model = tiny()
    ours.export(model, Bytes(specials=True).build(), tmp_path / "m.gguf", "f32")
    again, words = ours.load(tmp_path / "m.gguf")
    assert torch.equal(again(tokens), model(tokens))
    assert words.encode("é") == [0xC3, 0xA9]


def test_what_llama_cpp_has_not_is_refused(tiny, tokenizer, tmp_path):
    path = tmp_path / "m.gguf"
    with pytest.raises(SettingError, match=r"model\.attention\.window"):
        ours.export(tiny(attention={**GQA, "window": 8}), tokenizer, path)
    with pytest.raises(SettingError, match="300 ids, the model's vocabulary only 256"):
        ours.export(tiny(vocabulary=256), tokenizer, path)
    assert not list(tmp_path.iterdir())


def test_only_a_gguf_file_is_replaced(tiny, tokenizer, tmp_path):
    (tmp_path / "m.gguf").write_text("years of work")
    with pytest.raises(SettingError, match="a file of this name exists and is not GGUF"):
        ours.export(tiny(), tokenizer, tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_text() == "years of work"
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(SettingError, match="there is a folder of this name"):
        ours.export(tiny(), tokenizer, tmp_path / "folder.gguf")
    for precision in ("f32", "q8_0"):
        write_export(tiny(), tokenizer, tmp_path / "again.GGUF", precision)
    assert load_model(tmp_path / "again.GGUF")[0].config.layers == 2


@pytest.fixture(scope="module")
def written(tmp_path_factory, tiny, tokenizer):
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    ours.export(tiny(), tokenizer, path)
    return path


@pytest.fixture(scope="module")
def content(written):
    return written.read_bytes()


@pytest.mark.parametrize("length", [0, 3, 8, 24, 60, 3000, 40_000, -1])
def test_truncated(content, tmp_path, length):
    path = tmp_path / "cut.gguf"
    path.write_bytes(content[:length])
    with pytest.raises(SettingError, match=r"cut\.gguf: broken or not a GGUF file"):
        ours.load(path)


@pytest.mark.parametrize(
    ("place", "form", "value", "message"),
    [
        (0, "4s", b"GGML", "does not start with GGUF"),
        (4, "I", 9, "version 9 is not read here"),
        (8, "Q", 2**60, "broken or not a GGUF file"),  # tensors
        (16, "Q", 2**60, "truncated"),  # settings
        (24, "Q", 2**62, "truncated"),  # length of the first name
    ],
)
def test_headers_that_lie(content, tmp_path, place, form, value, message):
    damaged = bytearray(content)
    struct.pack_into(f"<{form}", damaged, place, value)
    path = tmp_path / "lies.gguf"
    path.write_bytes(damaged)
    with pytest.raises(SettingError, match=message):
        ours.load(path)


def test_missing_file_and_a_stranger(tmp_path, data):
    with pytest.raises(SettingError, match="no such file"):
        ours.load(tmp_path / "none.gguf")
    with pytest.raises(SettingError, match=r"gpt-2\.gguf: it has no token_embd"):
        ours.load(data / "tokenizers" / "llama.cpp" / "ggml-vocab-gpt-2.gguf")


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(at=st.integers(0, 20_000), value=st.integers(0, 255))
@example(at=256, value=1)  # 260 heads
def test_a_changed_byte_never_escapes(written, tmp_path_factory, at, value):
    """There is no digest in a GGUF file: a change is seen or gives other text, never a crash."""
    damaged = bytearray(written.read_bytes())
    damaged[at] = value
    path = tmp_path_factory.mktemp("fuzz") / "m.gguf"
    path.write_bytes(damaged)
    with suppress(SettingError):
        ours.load(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_llama_cpp_continues_as_we_do(tiny, tokenizer, tmp_path, name):
    llama_cpp = pytest.importorskip("llama_cpp")
    model = tiny(**SHAPES[name], context=128)
    ours.export(model, tokenizer, tmp_path / "m.gguf", "f16")
    model, _ = ours.load(tmp_path / "m.gguf")  # the same rounding to F16
    peer = llama_cpp.Llama(str(tmp_path / "m.gguf"), n_ctx=128, verbose=False, n_threads=1)
    prompt = "Once upon a time there were 12 foxes,  and\n\nit's"
    ids = tokenizer.encode(prompt)
    assert peer.tokenize(prompt.encode(), add_bos=False, special=False) == ids
    assert peer.token_eos() == tokenizer.end_of_text
    expected = list(ids)
    with torch.no_grad():
        for _ in range(50):
            expected.append(int(model(torch.tensor([expected]))[0, -1].argmax()))
    generated = peer.generate(ids, temp=0.0, repeat_penalty=1.0)
    assert ids + [next(generated) for _ in range(50)] == expected


@pytest.mark.slow
def test_llama_cpp_reads_bytes_as_tokens(tiny, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    words = Bytes(specials=True).build()
    ours.export(tiny(), words, tmp_path / "m.gguf")
    peer = llama_cpp.Llama(str(tmp_path / "m.gguf"), vocab_only=True, verbose=False)
    text = "Ein Mädchen: 12 + 7 = 19\n"
    assert peer.tokenize(text.encode(), add_bos=False, special=False) == words.encode(text)
