"""GGUF models in several files, and keys that are no settings of a model."""

import gguf
import pytest
import torch

from culm.config import SettingError
from culm.convert import gguf as ours
from culm.convert.load import load_model


def rewritten(source, path, most=0, **changed):
    """The file again, with other values, in parts of up to so many tensors."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=most)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture" and key not in changed:
            kind, *inner = field.types
            writer.add_key_value(key, field.contents(), kind, inner[-1] if inner else None)
    for key, value in changed.items():
        kind = gguf.GGUFValueType.get_type(value)
        kind = gguf.GGUFValueType.UINT32 if type(value) is int else kind
        writer.add_key_value(key, value, kind)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data.copy(), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(path.parent.glob(f"{path.stem}*.gguf"))


@pytest.fixture
def file(tiny, tokenizer, tmp_path):
    (tmp_path / "whole").mkdir()
    ours.export(tiny(), tokenizer, tmp_path / "whole" / "m.gguf", "f32")
    return tmp_path / "whole" / "m.gguf"


@pytest.fixture
def parts(file, tmp_path):
    found = rewritten(file, tmp_path / "x.gguf", most=8)
    assert [part.name for part in found] == [f"x-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    return found


def test_all_parts_are_read(file, parts, tokens):
    model, tokenizer = load_model(parts[0])
    expected, whole = load_model(file)
    assert torch.equal(model(tokens), expected(tokens))
    assert tokenizer.fingerprint == whole.fingerprint


def test_llama_cpp_reads_them_alike(file, parts, tokens):
    llama_cpp = pytest.importorskip("llama_cpp")
    ids = tokens[0, :12].tolist()
    peer = llama_cpp.Llama(str(parts[0]), n_ctx=32, logits_all=True, verbose=False, n_threads=1)
    peer.eval(ids)
    theirs = torch.tensor(peer.scores[: len(ids)].copy())
    found = load_model(parts[0])[0](torch.tensor([ids]))[0]
    assert (found - theirs).abs().max() < 0.02


def test_parts_that_do_not_fit_are_refused(parts, tmp_path):
    with pytest.raises(SettingError, match=r"it is part 2 of 3; give part 1, .*x-00001-of-00003"):
        load_model(parts[1])
    renamed = parts[0].rename(tmp_path / "one.gguf")
    with pytest.raises(SettingError, match=r"one.gguf: it is part 1 of 3, and its name must end"):
        load_model(renamed)
    renamed.rename(parts[0])
    content = parts[2].read_bytes()
    parts[2].write_bytes(parts[1].read_bytes())
    with pytest.raises(SettingError, match=r"x-00003-of-00003.gguf: it is not part 3 of 3"):
        load_model(parts[0])
    parts[2].write_bytes(content[:-40])
    with pytest.raises(SettingError, match=r"x-00003-of-00003.gguf: broken or not a GGUF file"):
        load_model(parts[0])
    parts[2].unlink()
    with pytest.raises(SettingError, match=r"part 1 of 3, and x-00003-of-00003.gguf is missing"):
        load_model(parts[0])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"split.no": 3, "split.count": 2}, "split.no 3 of split.count 2: broken"),
        ({"split.no": "a"}, "split.no 'a' of split.count 0: broken"),
        ({"split.count": 2}, "it is part 1 of 2, and its name must end with -00001-of-00002.gguf"),
    ],
)
def test_broken_places_are_refused(file, tmp_path, changed, message):
    (path,) = rewritten(file, tmp_path / "y.gguf", **changed)
    with pytest.raises(SettingError, match=message):
        load_model(path)


def test_a_tensor_in_two_parts_is_refused(file, parts, tmp_path):
    (tmp_path / "again").mkdir()
    more = rewritten(file, tmp_path / "again" / "x.gguf", most=7)
    for n, (part, other) in enumerate(zip(parts, more, strict=True)):
        if n == 1:
            part.write_bytes(other.read_bytes())
    with pytest.raises(SettingError, match=r"tensor \S+ is in several parts; download them again"):
        load_model(parts[0])


def test_keys_that_are_no_settings_of_the_model(file, tmp_path, tokens):
    changed = {"llama.tensor_data_layout": "Meta AI original pth", "llama.attention.causal": True,
               "llama.rope.scaling.finetuned": False}  # fmt: skip
    (path,) = rewritten(file, tmp_path / "y.gguf", **changed)
    assert torch.equal(load_model(path)[0](tokens), load_model(file)[0](tokens))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"llama.attention.causal": False}, "attention.causal: False is not read here, only True"),
        ({"llama.rope.dimension_count": 8}, "rope.dimension_count: 8 of 16 is not read here"),
        ({"llama.attention.clamp_kqv": 8.0}, "attention.clamp_kqv: 8.0 is not known .*; remove it"),
    ],
)
def test_what_may_change_the_model_is_refused(file, tmp_path, changed, message):
    (path,) = rewritten(file, tmp_path / "y.gguf", **changed)
    with pytest.raises(SettingError, match=message):
        load_model(path)
