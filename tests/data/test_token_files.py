"""Token shards of nanoGPT, llm.c and our own, as text."""

import bz2
import tracemalloc

import numpy as np
import pytest

from culm.config import SettingError, parse
from culm.data.format.document import DocumentFormat
from culm.data.manifest import Manifest
from culm.data.notes import DAMAGED
from culm.data.prepare import prepare
from culm.data.prepared import Prepared
from culm.data.settings import DataConfig
from culm.data.token_files import BLOCK, HEADER, LONGEST
from culm.tokenizer.train import BPE

TEXTS = ["the quick brown fox", "over the lazy dog 東京", "jumps"]


@pytest.fixture
def words(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "words")
    return tmp_path / "words"


def opened(path, words, **settings):
    data = {"path": str(path), "tokenizer": None if words is None else str(words), **settings}
    return parse(DataConfig, data, "data").open()


def encoded(tokenizer, texts=TEXTS, before=False):
    end = tokenizer.end_of_text
    ids = [[end, *one] if before else [*one, end] for one in map(tokenizer.encode, texts)]
    return [token for one in ids for token in one]


def header(magic, version, count):
    head = np.zeros(256, dtype="<i4")
    head[:3] = magic, version, count
    return head.tobytes()


def test_shards_of_nanogpt_and_llm_c_are_the_text(tokenizer, words, tmp_path):
    ids = encoded(tokenizer)
    before = encoded(tokenizer, before=True)
    small = np.array(ids, dtype=np.uint16).tobytes()
    for name, content in {
        "nano.bin": small,
        "nano.bin.bz2": bz2.compress(small),
        "gpt2.bin": header(20240520, 1, len(ids)) + np.array(before, np.uint16).tobytes(),
        "llama.bin": header(20240801, 7, len(ids)) + np.array(before, np.uint32).tobytes(),
    }.items():
        path = tmp_path / name
        path.write_bytes(content)
        records = list(opened(path, words))
        assert [record["text"] for record in records] == TEXTS, name
        assert records[0].place == f"{path}: token {0 if 'nano' in name else 1}"
    source = opened(tmp_path, words)  # a folder of them
    assert len(list(source)) == 4 * len(TEXTS)


def test_a_corpus_of_shards_is_the_corpus_of_its_text(tokenizer, words, tmp_path):
    texts = [f"{text} {n}" for n in range(40) for text in TEXTS]
    (tmp_path / "a.txt").write_text("\n".join(texts))
    path = tmp_path / "a.bin"
    path.write_bytes(np.array(encoded(tokenizer, texts), dtype=np.uint16).tobytes())
    plain = parse(DataConfig, {"path": str(tmp_path / "a.txt"), "split": "lines"}).open()
    for name, source in (("shards", opened(path, words)), ("text", plain)):
        prepare(source, DocumentFormat(), tokenizer, tmp_path / name, held_out=0.2)
    one, other = (Manifest.read(tmp_path / name) for name in ("shards", "text"))
    assert one.splits == other.splits
    assert list(one.origin) == [str(path)]
    assert not one.notes


def test_a_prepared_corpus_is_read_for_another_tokenizer(tokenizer, words, tmp_path):
    texts = [f"{text} {n}" for n in range(40) for text in TEXTS]
    (tmp_path / "a.txt").write_text("\n".join(texts))
    plain = parse(DataConfig, {"path": str(tmp_path / "a.txt"), "split": "lines"}).open()
    first = prepare(plain, DocumentFormat(), tokenizer, tmp_path / "first", held_out=0.2)
    other = BPE(vocabulary=300).build(texts)
    source = opened(tmp_path / "first", None)
    assert {record["text"] for record in source} < set(texts)
    second = prepare(source, DocumentFormat(), other, tmp_path / "second", held_out=0)
    assert second.splits["train"].bytes == first.splits["train"].bytes
    assert second.splits["train"].documents == first.splits["train"].documents
    [count] = second.notes.values()
    assert count == first.splits["held_out"].documents
    assert any(name.endswith("tokens-00000.npy") for name in second.origin)
    assert not Prepared.open(tmp_path / "second", tokenizer=other.fingerprint).masked


def test_tokens_of_four_bytes_are_not_read_as_twice_as_many(words, tmp_path):
    """The upper halves are 0, which is a token of the vocabulary too."""
    path = tmp_path / "a.bin"
    path.write_bytes(np.array([200, 100, 42], dtype=np.uint32).tobytes())
    with pytest.raises(SettingError, match="it seems to hold tokens of four bytes"):
        list(opened(path, words))


def test_ids_beyond_the_vocabulary_are_refused(tokenizer, words, tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(np.array([1, 2, tokenizer.vocabulary], dtype=np.uint16).tobytes())
    with pytest.raises(SettingError, match=r"a\.bin: token 2 is 350, beyond the vocabulary of 350"):
        list(opened(path, words, invalid="skip"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header(20240520, 1, 9) + b"\1\0" * 4, r"4 tokens where its header says 9"),
        (b"\1\0\1", r"truncated after token 1"),
    ],
)
def test_a_truncated_shard_is_refused_or_counted(content, message, tokenizer, words, tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    with pytest.raises(SettingError, match=rf"a\.bin: {message}"):
        list(opened(path, words))
    (tmp_path / "b.txt").write_text("text")
    both = {"path": [str(path), str(tmp_path / "b.txt")], "tokenizer": str(words)}
    data = parse(DataConfig, {**both, "invalid": "skip"})
    prepare(data.open(), DocumentFormat(), tokenizer, tmp_path / "out", held_out=0, invalid="skip")
    assert Manifest.read(tmp_path / "out").notes[DAMAGED] == 1


def test_settings_that_do_not_fit_are_named(tokenizer, words, tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(header(20240520, 2, 9))
    with pytest.raises(SettingError, match=r"data\.tokenizer: .*a\.bin holds token ids; name the"):
        opened(path, None)
    with pytest.raises(SettingError, match="version 2 of llm"):
        list(opened(path, words))
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(SettingError, match=r"data\.tokenizer: data\.path names no token shards"):
        opened(tmp_path / "a.txt", words)


def test_shards_stream(tokenizer, words, tmp_path):
    path = tmp_path / "a.bin"
    ids = np.array(tokenizer.encode("word "), dtype=np.uint16)
    path.write_bytes(np.tile(ids, 8 * BLOCK // len(ids)).tobytes())
    assert path.stat().st_size > 2 * LONGEST + HEADER
    tracemalloc.start()
    texts = [len(record["text"]) for record in opened(path, words)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(texts) > 1
    assert sum(texts) == 5 * (8 * BLOCK // len(ids))
    assert peak < 200e6
