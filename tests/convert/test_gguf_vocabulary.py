"""Tokenizers of any GGUF file: llama.cpp's vectors and rules, and invalid metadata."""

from contextlib import suppress

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vocabularies import TEXTS, byte_level, metadata, peer, scored, written

from culm.config import SettingError
from culm.convert.gguf import header as gguf_header
from culm.convert.gguf.tokenizer import load_tokenizer
from culm.convert.gguf.vocabulary import read_tokenizer
from culm.convert.gguf.words import RULES

VOCABULARIES = ("gpt-2", "falcon", "mpt", "gpt-neox", "phi-3", "bert-bge")


@pytest.mark.parametrize("name", VOCABULARIES)
def test_vectors_of_llama_cpp(shared, name):
    path = shared(f"tokenizers/llama.cpp/ggml-vocab-{name}.gguf")
    tokenizer = read_tokenizer(gguf_header.read(path), path)
    if name == "gpt-neox":  # which comes without vectors
        assert tokenizer.decode(tokenizer.encode("12 Où?\n\n  x")) == "12 Où?\n\n  x"
        return
    texts = shared(f"{path}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = shared(f"{path}.out").read_text().splitlines()
    assert len(lines) > 40
    for text, line in zip(texts, lines, strict=False):
        ids = tokenizer.encode(text)
        assert ids == [int(id) for id in line.split()], text
        if name != "bert-bge":  # which knows no capitals
            assert tokenizer.decode(ids) == text


def test_ends_and_types(shared):
    path = shared("tokenizers/llama.cpp/ggml-vocab-phi-3.gguf")
    tokenizer = read_tokenizer(gguf_header.read(path), path)
    assert (tokenizer.start, tokenizer.vocabulary) == ([1], 32064)
    assert (tokenizer.end_of_text, tokenizer.end_of_turn) == (32000, 32007)
    assert tokenizer.stop_ids == {2, 32000, 32007}
    assert tokenizer.specials["<|assistant|>"] == 32001
    assert tokenizer.chat.prompt([{"role": "user", "content": "Hi"}])[-1] == 32001
    assert 32001 not in tokenizer.encode("<|assistant|>")
    assert tokenizer.encode("<|assistant|>\n Hi", specials=True) == [32001, 6324]  # spaces are cut
    path = shared("tokenizers/llama.cpp/ggml-vocab-bert-bge.gguf")
    bert = read_tokenizer(gguf_header.read(path), path)
    assert (bert.start, bert.end_of_text) == ([101], 102)
    pieces = bert.encode("Unbelievably small")
    assert b"".join(map(bert.bytes_of, pieces)) == b" unbelievably small"


def test_start_and_end_are_put(tmp_path):
    tokenizer = scored(prefix=True)
    path = written(tokenizer, tmp_path / "m.gguf")
    fields = metadata(path)
    assert read_tokenizer(fields, path).start == []
    fields["tokenizer.ggml.add_bos_token"] = fields["tokenizer.ggml.add_eos_token"] = True
    fields["tokenizer.ggml.bos_token_id"] = 1
    both = read_tokenizer(fields, path)
    assert both.start == [1]
    assert both._marked.encode("a").ids[-1] == 2
    del fields["tokenizer.ggml.add_bos_token"], fields["tokenizer.ggml.bos_token_id"]
    assert read_tokenizer(fields, path).start == [1]  # what is taken where a file is silent


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", "t5", r"model: a vocabulary of kind 't5' is not read here, only gpt2, llama"),
        ("model", None, "model: a vocabulary of kind None"),
        ("model", 3, "model: '3' is not a str"),
        ("pre", "kimi-k2", "pre: the rule 'kimi-k2' to split text is not known here"),
        ("tokens", None, "tokens: it is missing"),
        ("tokens", [], "tokens: the list is empty"),
        ("tokens", "a", "tokens: 'a' is not a list"),
        ("tokens", [1, 2], "tokens: it contains other types than str"),
        ("tokens", ["a", "a"], r"token_type: \d+ values for 2 tokens"),
        ("token_type", [1.0], "token_type: it contains other types than int"),
        ("scores", [0.0], r"scores: 1 values for \d+ tokens"),
        ("merges", None, "merges: it is missing"),
        ("merges", [], "merges: it is empty, so tokens of several bytes are never used"),
        ("merges", ["ab"], "merges: 'ab' is not a pair"),
        ("merges", ["! ~"], "merges: '! ~' gives no token"),
        ("eos_token_id", 423, "eos_token_id: 423 is not a token"),
        ("eos_token_id", True, "eos_token_id: 'True' is not a int"),
        ("eos_token_id", None, "eos_token_id: no token ends a text"),
        ("add_bos_token", 1, "add_bos_token: '1' is not a bool"),
    ],
)
def test_invalid_metadata_are_refused(tmp_path, key, value, message):
    path = written(byte_level(*RULES["qwen2"].words), tmp_path / "m.gguf")
    fields = metadata(path)
    fields[f"tokenizer.ggml.{key}"] = value
    if value is None:
        del fields[f"tokenizer.ggml.{key}"]
    if key == "tokens" and not value:
        del fields["tokenizer.ggml.token_type"]
    with pytest.raises(SettingError, match=rf"m\.gguf: tokenizer\.ggml\.{message}.*; import this"):
        read_tokenizer(fields, path)


def test_more_invalid_metadata_are_refused(tmp_path):
    path = written(scored(prefix=True), tmp_path / "m.gguf")
    fields = metadata(path)
    names = list(fields["tokenizer.ggml.tokens"])
    names[5] = "<0xXY>"
    with pytest.raises(SettingError, match=r"tokens: byte <0x02> has no token; import this"):
        read_tokenizer({**fields, "tokenizer.ggml.tokens": names}, path)
    names[5] = names[300]
    with pytest.raises(SettingError, match=r"tokens: a token occurs twice"):
        read_tokenizer({**fields, "tokenizer.ggml.tokens": names}, path)
    silent = {key: value for key, value in fields.items() if not key.endswith(".scores")}
    with pytest.raises(SettingError, match=r"tokenizer\.ggml\.scores: it is missing; import this"):
        read_tokenizer(silent, path)
    with pytest.raises(SettingError, match=r"m\.gguf: tokenizer\.chat_template: it is not text"):
        read_tokenizer({**fields, "tokenizer.chat_template": [1]}, path)
    whole = gguf_header.read(path)
    with pytest.raises(SettingError, match=r"m\.gguf: broken: tokenizer\.huggingface\.json or"):
        load_tokenizer({**whole, "culm.tokenizer": "{}"}, path)


def test_a_missing_list_of_types_is_reported(tmp_path, capsys):
    path = written(byte_level(*RULES["qwen2"].words), tmp_path / "m.gguf")
    fields = metadata(path)
    del fields["tokenizer.ggml.token_type"]
    assert "<|end|>" in read_tokenizer(fields, path).specials  # an end, as in llama.cpp
    assert "token_type is missing; every token is read as text" in capsys.readouterr().err


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    """The metadata of a small vocabulary that merges by score."""
    return metadata(written(scored(prefix=True), tmp_path_factory.mktemp("gguf") / "m.gguf"))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    key=st.sampled_from(
        ["model", "pre", "tokens", "token_type", "scores", "merges", "bos_token_id", "eos_token_id",
         "add_bos_token", "add_space_prefix", "unknown_token_id"]
    ),
    value=st.one_of(
        st.none(), st.integers(), st.booleans(), st.floats(), st.text(max_size=3),
        st.sampled_from(["gpt2", "llama", "bert", "default"]),
        st.lists(st.text(max_size=2), max_size=4), st.lists(st.integers(0, 7), max_size=4),
    ),
    place=st.integers(0, 400),
)  # fmt: skip
def test_any_changed_value_is_refused_or_read(fields, key, value, place):
    """A whole value or one element of a list is another one: refused, or some tokenizer."""
    old = fields.get(f"tokenizer.ggml.{key}")
    if isinstance(old, list) and not isinstance(value, list):
        value = [*old[:place], value, *old[place + 1 :]]
    with suppress(SettingError):
        read_tokenizer({**fields, f"tokenizer.ggml.{key}": value}, "m.gguf").encode("a b")


@pytest.mark.slow
@pytest.mark.parametrize("name", VOCABULARIES[:5])
def test_foreign_vocabularies_give_the_ids_of_llama_cpp(shared, name):
    path = shared(f"tokenizers/llama.cpp/ggml-vocab-{name}.gguf")
    tokenizer, theirs = read_tokenizer(gguf_header.read(path), path), peer(path)
    for text in TEXTS:
        assert theirs(text) == tokenizer.encode(text), text


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_rules_of_llama_cpp(shared, tmp_path, name):
    """GPT-2's vocabulary under each rule."""
    fields = gguf_header.read(shared("tokenizers/llama.cpp/ggml-vocab-gpt-2.gguf"))
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "gpt2")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list(fields["tokenizer.ggml.tokens"])
    writer.add_token_types(fields["tokenizer.ggml.token_type"])
    writer.add_token_merges(fields["tokenizer.ggml.merges"])
    writer.add_bos_token_id(50256)
    writer.add_eos_token_id(50256)
    for add in (writer.add_context_length, writer.add_embedding_length, writer.add_block_count):
        add(1)
    writer.add_feed_forward_length(1)
    writer.add_head_count(1)
    writer.add_layer_norm_eps(1e-5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    tokenizer = read_tokenizer(gguf_header.read(tmp_path / "m.gguf"), "m.gguf")
    theirs = peer(tmp_path / "m.gguf")
    for text in TEXTS:
        assert theirs(text) == tokenizer.encode(text), text
