"""Settings that change what a model generates are applied, refused or reported."""

import json

import gguf as library
import pytest
import torch
from vocabularies import byte_level, metadata, peer, scored, written

import culm
from culm.config import SettingError
from culm.convert import gguf, hf, native
from culm.convert.gguf import header as gguf_header
from culm.convert.gguf.metadata import NEUTRAL, READ
from culm.convert.gguf.vocabulary import read_tokenizer
from culm.convert.gguf.words import RULES
from culm.engine.sampling import Sampling
from culm.tokenizer.tokenizer import Tokenizer

SUPPRESSED = "tokenizer.ggml.suppress_tokens"


def change(path, **values):
    old = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**old, **values}))


@pytest.fixture
def folder(tiny, tokenizer, tmp_path):
    hf.export(tiny(), tokenizer, tmp_path / "there")
    return tmp_path / "there"


def test_suppressed_tokens_are_not_generated(folder, tmp_path, tokenizer):
    """As in transformers; the setting survives every conversion."""
    transformers = pytest.importorskip("transformers")
    prompt = tokenizer.encode("Once upon")
    free = culm.load(folder)
    barred = sorted({*free.encode(free.generate(prompt, 12, temperature=0.0))})[:4]
    change(folder / "generation_config.json", suppress_tokens=barred)
    ours = culm.load(folder)
    found = (
        ours.engine(1, 40).generate([ours.request(prompt, 12, Sampling(temperature=0))])[0].tokens
    )
    assert not set(found) & set(barred)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([prompt])
    there = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12)
    assert there[0, len(prompt) :].tolist() == list(found)
    gguf.export(ours.model, ours.tokenizer, tmp_path / "m.gguf", "f32")
    native.save(ours.model, ours.tokenizer, tmp_path / "ours")
    hf.export(ours.model, ours.tokenizer, tmp_path / "hf")
    for path in ("m.gguf", "ours", "hf"):
        assert culm.load(tmp_path / path).tokenizer.suppressed == tuple(barred)
    assert gguf_header.read(tmp_path / "m.gguf")[SUPPRESSED] == barred


@pytest.mark.parametrize("given", [3, "x", [1.5], [True], [-1], {"a": 1}])
def test_what_lists_no_ids_is_refused(folder, given):
    change(folder / "generation_config.json", suppress_tokens=given)
    with pytest.raises(SettingError, match=r"there: suppress_tokens: .* is not a list of ids"):
        Tokenizer.load(folder)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("begin_suppress_tokens", [4]),
        ("bad_words_ids", [[4, 5]]),
        ("no_repeat_ngram_size", 3),
        ("min_new_tokens", 5),
        ("sequence_bias", [[[4], 2.0]]),
        ("stop_strings", ["\n\n"]),
    ],
)
def test_what_is_not_applied_is_reported(folder, capsys, setting, value):
    Tokenizer.load(folder)
    assert "not applied" not in capsys.readouterr().err
    change(folder / "generation_config.json", **{setting: value})
    kept = Tokenizer.load(folder).generation
    said = f"there: {setting}: not applied here, kept for an export"
    assert said in capsys.readouterr().err
    assert kept[setting] == value


# -- GGUF ---------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    return written(byte_level(*RULES["qwen2"].words), tmp_path / "m.gguf")


def test_suppressed_tokens_of_other_files(file):
    fields = metadata(file)
    assert read_tokenizer(fields, file).suppressed == ()
    assert read_tokenizer({**fields, SUPPRESSED: [7, 5]}, file).suppressed == (5, 7)
    with pytest.raises(SettingError, match=r"m\.gguf: suppress_tokens: 'x' is not a list of ids"):
        read_tokenizer({**fields, SUPPRESSED: "x"}, file)


def test_every_key_of_a_tokenizer_is_known():
    """All that the package names: read, without effect on ids, or of a kind that is not read."""
    prefix = "tokenizer.ggml."
    keys = {key for key in vars(library.Keys.Tokenizer).values() if str(key).startswith(prefix)}
    assert len(keys) > 20
    assert {key.removeprefix(prefix) for key in keys} <= READ | NEUTRAL
    assert not READ & NEUTRAL


@pytest.mark.parametrize("key", ["lowercase_all", "dropout", "normalizer.nfkc"])
def test_an_unknown_key_of_a_tokenizer_is_refused(file, key):
    fields = metadata(file)
    fields[f"tokenizer.ggml.{key}"] = False
    read_tokenizer(fields, file)
    fields[f"tokenizer.ggml.{key}"] = True
    with pytest.raises(
        SettingError, match=rf"tokenizer\.ggml\.{key}: 'True' is not known here; im"
    ):
        read_tokenizer(fields, file)


def test_sampling_that_is_not_used_is_reported(file, capsys):
    fields = {**metadata(file), "general.sampling.temp": 0.5, "general.sampling.mirostat": 2}
    generation = read_tokenizer(fields, file).generation
    assert generation == {"do_sample": True, "temperature": 0.5}
    said = "m.gguf: general.sampling.mirostat: settings of llama.cpp's server, not used here"
    assert said in capsys.readouterr().err


SWITCHES = [
    {},
    {"lowercase": False},
    {"strip_accents": False},
    {"lowercase": False, "strip_accents": True},
    {"lowercase": True, "strip_accents": False},
]


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_normalizers_of_word_pieces_are_those_of_llama_cpp(data, tmp_path, switches):
    original = data / "tokenizers/llama.cpp/ggml-vocab-bert-bge.gguf"
    if not original.is_file():
        pytest.skip("no such file")
    switched = {f"tokenizer.ggml.normalizer.{name}": value for name, value in switches.items()}
    path, fields = tmp_path / "m.gguf", gguf_header.read(original) | switched
    writer = library.GGUFWriter(path, "bert")
    adds = {
        bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32,
        str: writer.add_string, list: writer.add_array,
    }  # fmt: skip
    for key, value in fields.items():
        if not key.startswith("general."):
            adds[type(value)](key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    text = "The QUICK fox, caf\u00e9 CAF\u00c9 \u00e9"
    assert read_tokenizer(fields, path).encode(text) == peer(path)(text)


@pytest.mark.parametrize("kind", ["byte level", "scored"])
def test_normalizers_are_ignored_elsewhere_as_in_llama_cpp(tmp_path, kind):
    words = byte_level(*RULES["qwen2"].words) if kind == "byte level" else scored(prefix=True)
    plain = written(words, tmp_path / "plain.gguf")
    switched = written(words, tmp_path / "m.gguf", {"tokenizer.ggml.normalizer.lowercase": True})
    text = "The QUICK fox"
    fields = metadata(switched)
    assert fields["tokenizer.ggml.normalizer.lowercase"] is True
    assert (
        peer(plain)(text) == peer(switched)(text) == read_tokenizer(fields, switched).encode(text)
    )
