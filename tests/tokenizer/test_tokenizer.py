"""Round trips, agreement with the reference libraries, files, streaming, bad input."""

import json
import subprocess
import sys

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from culm.config import SettingError, parse
from culm.source.pieces import pieces
from culm.tokenizer import TokenizerConfig
from culm.tokenizer.bytes import Bytes
from culm.tokenizer.chat import SPECIALS
from culm.tokenizer.decoder import Decoder
from culm.tokenizer.tiktoken import from_tiktoken
from culm.tokenizer.tokenizer import Tokenizer
from culm.tokenizer.train import BPE

text_of_any_kind = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
assigned_text = st.text(st.characters(exclude_categories=["Cs", "Cn", "Co"]), max_size=60)
few = settings(max_examples=60, deadline=None)

TRICKY = [
    *(
        "",
        " ",
        "\n",
        " \n \n\n  x",
        "a\r\nb\r\n\r\n",
        "\u00a0\u3000\u2028x",
        "   indented\n\t\ttabs",
    ),
    *("don't DON'T we'LL I'\u017f", "12345 6.7e-8", "<|end|> <|user|>", "=" * 300, "\x00\x01\x1f"),
    *("e\u0301 क्षि \U0001f469\u200d\U0001f469\u200d\U0001f467", "\ufb01 \u2167 ²"),
]


@given(text_of_any_kind)
@few
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text
    for plain in (Bytes().build(), Bytes(specials=True).build()):
        assert plain.encode(text) == list(text.encode())
        assert plain.decode(plain.encode(text)) == text


@given(st.binary(max_size=40))
@few
def test_any_bytes_decode_as_python_decodes_them(data):
    tokenizer = Bytes().build()
    assert tokenizer.decode(list(data)) == data.decode("utf-8", "replace")


def test_a_word_that_no_merge_gives_is_never_used(tokenizer):
    """As in `tokenizers`; tiktoken would use it."""
    parts = json.loads(tokenizer.json)
    parts["model"]["vocab"]["zqzqz"] = tokenizer.vocabulary
    inner = tokenizers.Tokenizer.from_str(json.dumps(parts))
    expected = inner.encode("zqzqz", add_special_tokens=False).ids
    assert len(expected) == 5
    assert Tokenizer(inner, template=tokenizer.template).encode("zqzqz") == expected


@given(assigned_text)
@few
def test_tiktoken_gives_the_ids_of_tokenizers(tokenizer, text):
    pytest.importorskip("tiktoken")
    assert tokenizer._fast is not None
    slow = tokenizer._plain.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text) == slow


def test_tiktoken_gives_the_ids_of_tokenizers_on_real_text(shared):
    pytest.importorskip("tiktoken")
    text = shared("pretrain_tiny/tinyshakespeare_input.txt").read_text()[:200_000]
    trained = BPE(vocabulary=2000).build([text])
    gpt2 = Tokenizer.load(shared("tokenizers/gpt2"))
    for tokenizer in (trained, gpt2):
        for sample in (text, *TRICKY):
            slow = tokenizer._plain.encode(sample, add_special_tokens=False).ids
            assert tokenizer._fast is not None
            assert tokenizer.encode(sample) == slow


def test_special_tokens_come_from_text_only_when_asked(tokenizer):
    text = "a<|end|>b"
    assert tokenizer.end_of_turn not in tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    marked = tokenizer.encode(text, specials=True)
    assert marked.count(tokenizer.end_of_turn) == 1
    assert tokenizer.decode(marked) == "ab"
    assert tokenizer.decode(marked, specials=True) == text
    assert tokenizer.bytes_of(tokenizer.end_of_turn) == b""


def test_vocabulary_and_ends(tokenizer, texts):
    assert list(tokenizer.specials) == list(SPECIALS)
    assert tokenizer.stop_ids == {tokenizer.end_of_text, tokenizer.end_of_turn}
    assert BPE(vocabulary=300).build(texts).vocabulary == 300
    plain = Bytes().build()
    assert (plain.vocabulary, plain.end_of_text, plain.specials) == (256, 0, {})
    marked = Bytes(specials=True).build()
    assert (marked.vocabulary, marked.end_of_turn) == (262, 261)


def test_digits_are_single_tokens():
    tokenizer = BPE(vocabulary=400).build(["1234 1234 1234 +1234 x1234"] * 50)
    assert [tokenizer.bytes_of(id) for id in tokenizer.encode("1234")] == [b"1", b"2", b"3", b"4"]


def test_training_is_deterministic(shared):
    text = shared("pretrain_tiny/tinyshakespeare_input.txt").read_text()[:100_000]
    first, second = (BPE(vocabulary=1000).build(text.splitlines(True)) for _ in range(2))
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint != BPE(vocabulary=999).build(text.splitlines(True)).fingerprint


def test_bytes_of_tokens_join_to_the_bytes_of_the_text(tokenizer, texts):
    for text in (*texts, *TRICKY):
        assert b"".join(map(tokenizer.bytes_of, tokenizer.encode(text))) == text.encode()


@given(st.lists(st.integers(0, 349), max_size=30))
@few
def test_streaming_is_decoding(tokenizer, ids):
    decoder = Decoder(tokenizer)
    streamed = "".join(map(decoder.push, ids)) + decoder.flush()
    assert streamed == tokenizer.decode(ids)


def test_streaming_holds_back_only_an_unfinished_character():
    decoder = Decoder(Bytes().build())
    assert [decoder.push(byte) for byte in "é€".encode()] == ["", "é", "", "", "€"]
    assert [decoder.push(0xE2), decoder.push(ord("a")), decoder.flush()] == ["", "\ufffda", ""]
    assert [decoder.push(0xC3), decoder.flush(), decoder.push(ord("b"))] == ["", "\ufffd", "b"]


def test_a_saved_folder_is_the_same_tokenizer(tokenizer, tmp_path):
    for number, original in enumerate((tokenizer, Bytes().build(), Bytes(specials=True).build())):
        folder = tmp_path / str(number)
        original.save(folder)
        again = Tokenizer.load(folder)
        assert again.fingerprint == original.fingerprint
        assert again.template == original.template
        assert (again.end_of_text, again.end_of_turn) == (
            original.end_of_text,
            original.end_of_turn,
        )
        assert again.stop_ids == original.stop_ids
        assert again.specials == original.specials


def test_transformers_reads_a_saved_folder_alike(tokenizer, tmp_path, texts):
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in (*texts, *TRICKY):
        ours = tokenizer.encode(text, specials=True)
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours
        assert theirs.decode(ours, skip_special_tokens=True) == tokenizer.decode(ours)
    assert theirs.eos_token_id == theirs.pad_token_id == tokenizer.end_of_text
    assert len(theirs) == tokenizer.vocabulary
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": " What is 17 + 25?\n"},
        {"role": "assistant", "content": "42"},
    ]
    assert (
        theirs.apply_chat_template(messages, return_dict=False)
        == tokenizer.chat.encode(messages)[0]
    )
    prompt = theirs.apply_chat_template(messages[:2], add_generation_prompt=True, return_dict=False)
    assert prompt == tokenizer.chat.prompt(messages[:2])


def test_gpt2(shared):
    tokenizer = Tokenizer.load(shared("tokenizers/gpt2"))
    assert tokenizer.vocabulary == 50257
    assert tokenizer.end_of_text == 50256
    assert tokenizer.encode("Hello, I'm a language model,") == [
        15496,
        11,
        314,
        1101,
        257,
        3303,
        2746,
        11,
    ]
    assert tokenizer.decode([15496, 995]) == "Hello world"
    assert tokenizer.start == []


def test_words_split_as_llama_cpp_splits_them(shared):
    """The ids that llama.cpp writes down for GPT-2, text by text."""
    tokenizer = Tokenizer.load(shared("tokenizers/gpt2"))
    base = "tokenizers/llama.cpp/ggml-vocab-gpt-2.gguf"
    texts = shared(f"{base}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = shared(f"{base}.out").read_text().splitlines()
    for text, line in zip(texts, lines, strict=False):
        assert tokenizer.encode(text) == [int(id) for id in line.split()]


def test_cl100k_is_read_from_its_ranks(texts, shared):
    tiktoken = pytest.importorskip("tiktoken")
    path = shared("tokenizers/cl100k_base.tiktoken")
    tokenizer = from_tiktoken(path)
    assert tokenizer.vocabulary == 100277
    assert tokenizer.end_of_text == 100257
    assert tokenizer.encode("hello world") == [15339, 1917]
    assert set(tokenizer.chat.prompt([{"role": "user", "content": "x"}])) >= set(
        range(100262, 100264)
    )
    from tiktoken.load import load_tiktoken_bpe

    from culm.tokenizer.patterns import CL100K

    ranks = load_tiktoken_bpe(str(path))
    theirs = tiktoken.Encoding("cl100k", pat_str=CL100K, mergeable_ranks=ranks, special_tokens={})
    for text in (*texts, *TRICKY):
        assert tokenizer.encode(text) == theirs.encode_ordinary(text)
        assert tokenizer._plain.encode(text).ids == theirs.encode_ordinary(text)


# Of the tests of tiktoken; other texts and ids are in its files.
CL100K_VECTORS = {
    "hello world": [15339, 1917],
    "rer": [38149],
    "'rer": [2351, 81],
    "today\n ": [31213, 198, 220],
    "today\n \n": [31213, 27907],
    "today\n  \n": [31213, 14211],
    " \x850": [220, 126, 227, 15],
}


@pytest.mark.slow
def test_cl100k_has_the_ids_of_tiktoken(shared):
    tokenizer = from_tiktoken(shared("tokenizers/cl100k_base.tiktoken"))
    assert {text: tokenizer.encode(text) for text in CL100K_VECTORS} == CL100K_VECTORS
    marked = tokenizer.encode("hello <|endoftext|>", specials=True)
    assert marked == [15339, 220, 100257]
    assert tokenizer.encode("<|endofprompt|>", specials=True) == [100276]


@given(st.binary(max_size=40))
@few
def test_any_bytes_come_back_from_byte_level_ids(tokenizer, data):
    """Each byte has a token, so ids can say any bytes, also those that are no text."""
    ids = [one for byte in data for one in _id_of(tokenizer, byte)]
    assert b"".join(map(tokenizer.bytes_of, ids)) == data
    assert tokenizer.decode(ids) == data.decode("utf-8", "replace")


def _id_of(tokenizer, byte):
    return [id for id in range(tokenizer.vocabulary) if tokenizer.bytes_of(id) == bytes([byte])][:1]


@given(st.text("ab \n1é.", max_size=80), st.integers(1, 20))
@few
def test_pieces_join_to_the_text(text, size):
    parts = list(pieces(text, size))
    assert "".join(parts) == text
    assert all(len(part) <= size for part in parts)


def test_long_text_has_the_tokens_of_the_full_text(tokenizer, texts):
    text = (texts[0] + texts[1] + texts[2]) * 60  # several pieces
    assert len(text) > 1 << 17
    whole = tokenizer._plain.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text) == whole
    assert tokenizer.encode("a" * 200_000) == tokenizer.encode("a") * 200_000


def test_half_a_surrogate_pair_is_replaced(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
    assert tokenizer.decode(tokenizer.encode("\ud83d\ude42")) == "🙂"


def test_ids_beyond_the_vocabulary_are_refused(tokenizer):
    for id in (350, -1):
        with pytest.raises(ValueError, match=f"token id {id} is not in the vocabulary of 350"):
            tokenizer.decode([id])
        with pytest.raises(ValueError, match="not in the vocabulary"):
            tokenizer.bytes_of(id)


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(SettingError, match=r"contains no tokenizer\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(SettingError, match=r"tokenizer\.json: not a readable tokenizer"):
        Tokenizer.load(tmp_path)
    bad = tmp_path / "bad.tiktoken"
    for content, problem in (
        ("a b c", "not a tiktoken file"),
        ("YQ== 0", "a byte has no token"),
    ):
        bad.write_text(content)
        with pytest.raises(SettingError, match=problem):
            from_tiktoken(bad)
    with pytest.raises(
        SettingError, match=r"none\.tiktoken: there is no such file; download https://.*cl100k"
    ):
        from_tiktoken(tmp_path / "none.tiktoken")


def test_settings():
    assert parse(TokenizerConfig, "bytes") == Bytes()
    assert parse(TokenizerConfig, {"kind": "bpe", "vocabulary": 4096}) == BPE()
    with pytest.raises(SettingError, match=r"tokenizer\.vocabulary: it should be greater"):
        parse(TokenizerConfig, {"kind": "bpe", "vocabulary": 100}, "tokenizer")


def test_no_tensors_are_imported():
    code = "import sys, culm.tokenizer, culm.tokenizer.chat; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("ids", [99_999, -1, 1 << 40, "end", True, 2.0, [3, None], {"a": 1}])
@pytest.mark.parametrize("where", ["generation_config.json", "tokenizer_config.json"])
def test_ends_that_are_no_tokens(ids, where, tmp_path, capsys):
    Bytes(specials=True).build([]).save(tmp_path)
    name = "eos_token_id" if where == "generation_config.json" else "stop_ids"
    path = tmp_path / where
    kept = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**kept, name: [3, 7]}))
    assert {3, 7} <= Tokenizer.load(tmp_path).stop_ids
    path.write_text(json.dumps({**kept, name: ids}))
    if type(ids) is int:  # as GPT-2 has it, whatever vocabulary it was given
        assert max(Tokenizer.load(tmp_path).stop_ids) < 300
        assert f"{name}: the tokenizer has no token {ids}" in capsys.readouterr().err
        return
    with pytest.raises(SettingError, match=rf"{where}: {name}: .* is not a token id"):
        Tokenizer.load(tmp_path)
