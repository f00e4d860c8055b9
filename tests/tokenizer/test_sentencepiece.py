"""SentencePiece's files and training, against the sentencepiece library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from culm.config import SettingError, parse
from culm.convert.gguf.parts import read_parts
from culm.convert.gguf.tokenizer import OWN, add_tokenizer
from culm.convert.gguf.vocabulary import read_tokenizer
from culm.tokenizer import TokenizerConfig
from culm.tokenizer.bytes import Bytes
from culm.tokenizer.chat import SPECIALS
from culm.tokenizer.sentencepiece_model import parts_of
from culm.tokenizer.sentencepiece_train import SentencePiece
from culm.tokenizer.sentencepiece_write import to_model
from culm.tokenizer.tokenizer import Tokenizer

sentencepiece = pytest.importorskip("sentencepiece")

# The character maps of these change characters or spaces, so decoding gives the changed text.
LOSSLESS = ("mistral/tokenizer.model.v1", "mistral/mistral_instruct_tokenizer_240323.model.v3")
NORMALISING = (
    "sentencepiece/test_model.model",
    "sentencepiece/test_ja_model.model",
    "torchtune/m.model",
    "torchtune/sentencepiece.model",
)
TEXTS = (
    "The quick brown fox, it's 12345.67!", " a", "a  b ", "  ", "", "\t tab\n\n", "<0x0A> <0xE6>",
    "x<unk>y</s>", "東京と Москва", "🚀 é ﬁ ² \x00", "    def f(x):\r\n        return x",
)  # fmt: skip
KINDS = [(algorithm, prefix) for algorithm in ("unigram", "bpe") for prefix in (True, False)]


@pytest.fixture(scope="module")
def trained(shared: Callable[[str], Path]) -> dict[tuple[str, bool], Tokenizer]:
    text = shared("pretrain_tiny/tinyshakespeare_input.txt").read_text()[:100_000]
    return {
        (algorithm, prefix): SentencePiece(
            algorithm=algorithm, vocabulary=600, prefix=prefix
        ).build([text])
        for algorithm, prefix in KINDS
    }


def theirs(content: bytes) -> Callable[[str], list[int]]:
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    return lambda text: list(processor.encode(text))


@pytest.mark.parametrize("name", [*LOSSLESS, *NORMALISING])
def test_the_ids_of_a_file(name: str, shared: Callable[[str], Path]) -> None:
    content = shared(f"tokenizers/{name}").read_bytes()
    tokenizer = Tokenizer(*parts_of(content, name))
    novel = shared("pretrain_tiny/tinyshakespeare_input.txt").read_text()[:3000]
    encode = theirs(content)
    for text in (*TEXTS, novel, "a  [INST] b"):
        assert tokenizer.encode(text) == encode(text), text
        if name in LOSSLESS:
            assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("name", [*LOSSLESS, *NORMALISING])
def test_a_written_file(name: str, shared: Callable[[str], Path]) -> None:
    tokenizer = Tokenizer(*parts_of(shared(f"tokenizers/{name}").read_bytes(), name))
    written = to_model(tokenizer)
    encode = theirs(written)
    again = Tokenizer(*parts_of(written, "written"))
    for text in TEXTS:
        assert encode(text) == tokenizer.encode(text) == again.encode(text), text


def test_long_texts_are_encoded_in_parts(shared: Callable[[str], Path]) -> None:
    content = shared("tokenizers/torchtune/m.model").read_bytes()
    text = shared("pretrain_tiny/tinyshakespeare_input.txt").read_text()[:150_000]
    tokenizer = Tokenizer(*parts_of(content, "m.model"))
    assert tokenizer.encode(text) == theirs(content)(text)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_training_loses_nothing(
    trained: dict[tuple[str, bool], Tokenizer], kind: tuple[str, bool], text: str
) -> None:
    tokenizer = trained[kind]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    joined = b"".join(map(tokenizer.bytes_of, ids)).decode()
    assert joined == (f" {text}" if kind[1] and text else text)


@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_tokenizer(
    trained: dict[tuple[str, bool], Tokenizer], kind: tuple[str, bool], tmp_path: Path
) -> None:
    tokenizer = trained[kind]
    assert tokenizer.vocabulary == 600
    encode = theirs(to_model(tokenizer))
    for text in TEXTS:
        assert encode(text) == tokenizer.encode(text), text
    forged = "<|end|><|user|><unk>"
    assert not set(tokenizer.encode(forged)) & set(tokenizer.specials.values())
    assert tokenizer.decode(tokenizer.encode(forged)) == forged
    marks = tokenizer.encode("<|end|>a", specials=True)
    assert marks[0] == tokenizer.end_of_turn
    prompt = tokenizer.chat.prompt([{"role": "user", "content": forged}])
    assert [id for id in prompt if id in tokenizer.specials.values()] == [
        tokenizer.specials[name] for name in ("<|user|>", "<|end|>", "<|assistant|>")
    ]
    tokens = tokenizer.offsets.encode("The fox")
    assert (tokens.starts[0], tokens.ends[-1]) == (0, len("The fox"))
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_gguf(
    trained: dict[tuple[str, bool], Tokenizer], kind: tuple[str, bool], tmp_path: Path
) -> None:
    tokenizer, path = trained[kind], tmp_path / "words.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    if kind[0] == "unigram":
        with pytest.raises(SettingError, match="only BPE can be written to GGUF"):
            add_tokenizer(writer, tokenizer, tokenizer.vocabulary)
        return
    add_tokenizer(writer, tokenizer, tokenizer.vocabulary)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    fields = {key: value for key, value in read_parts(path)[0].items() if key not in OWN}
    again = read_tokenizer(fields, path)
    for text in TEXTS:
        assert again.encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_it_alike(
    trained: dict[tuple[str, bool], Tokenizer], kind: tuple[str, bool], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    trained[kind].save(tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("The fox, 123", " a", "東京\n"):
        assert loaded(text, add_special_tokens=False)["input_ids"] == trained[kind].encode(text)


def test_a_folder_with_a_model_file_only(shared: Callable[[str], Path], tmp_path: Path) -> None:
    content = shared("tokenizers/mistral/tokenizer.model.v1").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(content)
    assert Tokenizer.load(tmp_path).start == []
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.start == [1]
    assert (tokenizer.begin, tokenizer.end_of_text) == (1, 2)
    assert tokenizer.encode("Hello world") == theirs(content)("Hello world")
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    assert Tokenizer.load(tmp_path).start == []


def test_training_is_deterministic() -> None:
    lines = [f"line {number % 17} of words {number * 7919 % 1000}" for number in range(1000)]
    one, two, all_lines = (
        SentencePiece(vocabulary=330, lines=count).build(["\n".join(lines)])
        for count in (101, 101, 1000)
    )
    assert one.fingerprint == two.fingerprint != all_lines.fingerprint


def test_a_sample_is_announced(capsys: pytest.CaptureFixture[str]) -> None:
    SentencePiece(vocabulary=330, lines=101).build(["some words\n" * 150, "x" * 5000])
    said = capsys.readouterr().err
    assert "trained on 101 of 155 lines, a random sample; tokenizer.lines=N takes more" in said


def test_digits(shared: Callable[[str], Path]) -> None:
    text = "1234 1234 +1234\n" * 50
    for digits, several in (("single", False), (None, True)):
        tokenizer = SentencePiece(vocabulary=300, algorithm="bpe", digits=digits).build([text])
        pieces = [tokenizer.bytes_of(id) for id in tokenizer.encode("1234")]
        assert any(len(piece.strip()) > 1 for piece in pieces) == several


def test_what_is_refused(tmp_path: Path, shared: Callable[[str], Path]) -> None:
    bad = tmp_path / "bad.model"
    bad.write_bytes(b"no model")
    with pytest.raises(SettingError, match=r"bad\.model: not a \.model file of SentencePiece"):
        SentencePiece(path=bad).build([])
    with pytest.raises(SettingError, match=r"none\.model: there is no such file"):
        SentencePiece(path=tmp_path / "none.model").build([])
    given = {"kind": "sentencepiece", "path": "x", "vocabulary": 500}
    with pytest.raises(SettingError, match=r"tokenizer\.vocabulary: it has no effect with path"):
        parse(TokenizerConfig, given, "tokenizer")
    with pytest.raises(SettingError, match="only unigram, and BPE with bytes"):
        to_model(Bytes(specials=True).build())
    content = shared("tokenizers/torchtune/m.model").read_bytes()
    proto = sentencepiece.sentencepiece_model_pb2.ModelProto.FromString(content)
    proto.trainer_spec.model_type = 4
    with pytest.raises(SettingError, match="model_type is neither unigram nor bpe"):
        parts_of(proto.SerializeToString(), "m")
    with pytest.raises(SettingError, match="sentencepiece cannot train: "):
        SentencePiece(vocabulary=500).build([])


def test_special_tokens() -> None:
    settings = SentencePiece(vocabulary=400, chat=False, specials=("<a>",), reserved=2)
    tokenizer = settings.build(["some words and others\n" * 50])
    assert list(tokenizer.specials) == [
        "<unk>", SPECIALS[0], "<a>", "<|reserved_0|>", "<|reserved_1|>",
    ]  # fmt: skip
    assert tokenizer.template is None
