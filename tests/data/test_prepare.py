"""Shards on disk: what is in them, that they are checked, and that nothing is half-written."""

import errno
import hashlib
import json
import tracemalloc
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest

from culm.atomic import InUseError
from culm.config import SettingError
from culm.data.format.chat import ChatFormat
from culm.data.format.document import DocumentFormat
from culm.data.format.label import LabelFormat
from culm.data.format.pair import PairFormat
from culm.data.manifest import Manifest
from culm.data.prepare import prepare
from culm.data.prepared import Prepared, verify
from culm.data.shards import ArrayWriter, SplitWriter
from culm.source import open_source
from culm.tokenizer.bytes import Bytes


@dataclass
class Records:
    """A source in memory."""

    records: list
    name: str = "the records"
    size: int | None = None
    left_out: dict = field(default_factory=dict)
    files: tuple = ()

    def __iter__(self):
        return iter(self.records)


def documents(count):
    return Records([{"text": f"document number {n} " * (n % 7 + 1)} for n in range(count)])


def all_documents(prepared):
    offsets = prepared.offsets.tolist()
    return [prepared.read(s, e)[0].tolist() for s, e in pairwise(offsets)]


def test_every_document_is_in_one_split_once(tokenizer, tmp_path):
    source = documents(200)
    source.records += source.records[:50]
    manifest = prepare(source, DocumentFormat(), tokenizer, tmp_path / "p", held_out=0.1)
    assert (manifest.documents, manifest.dropped) == (200, 50)
    splits = {name: Prepared.open(tmp_path / "p", name) for name in manifest.splits}
    assert 8 <= splits["held_out"].facts.documents <= 40
    found = sorted(ids for prepared in splits.values() for ids in all_documents(prepared))
    expected = [[*tokenizer.encode(r["text"]), tokenizer.end_of_text] for r in source.records[:200]]
    assert found == sorted(expected)
    assert manifest.tokens == sum(map(len, expected))
    assert manifest.bytes == sum(len(r["text"]) for r in source.records[:200])
    assert not splits["train"].masked
    assert splits["train"].read(0, 3)[0].dtype == np.uint16


def test_preparing_is_deterministic_and_the_split_follows_the_document(tokenizer, tmp_path):
    source = documents(100)
    first = prepare(source, DocumentFormat(), tokenizer, tmp_path / "a", held_out=0.2)
    again = prepare(source, DocumentFormat(), tokenizer, tmp_path / "b", held_out=0.2)
    assert first == again
    other = prepare(source, DocumentFormat(), tokenizer, tmp_path / "c", held_out=0.2, seed=1)
    assert first.splits["held_out"] != other.splits["held_out"]
    more = Records(list(reversed(source.records + documents(150).records)))
    prepare(more, DocumentFormat(), tokenizer, tmp_path / "d", held_out=0.2)
    held = [sorted(all_documents(Prepared.open(tmp_path / n, "held_out"))) for n in "ad"]
    assert all(document in held[1] for document in held[0])


def test_the_splits_are_the_same_for_every_tokenizer(tokenizer, tmp_path):
    source = documents(100)
    source.records += source.records[:30]
    chats = [{"prompt": f"q{n % 20}", "completion": "yes"} for n in range(40)]
    pairs = [{"prompt": "q", "chosen": f"a{n}", "rejected": f"b{n}"} for n in range(30)]
    for name, records, format in (
        ("text", source.records, DocumentFormat()),
        ("chat", chats, ChatFormat()),
        ("pair", pairs, PairFormat()),
    ):
        found = []
        for number, each in enumerate((tokenizer, Bytes(specials=True).build())):
            folder = tmp_path / f"{name}-{number}"
            dropped = prepare(Records(records), format, each, folder, held_out=0.2).dropped
            held = all_documents(Prepared.open(folder, "held_out"))
            found.append((dropped, [each.decode(ids) for ids in held]))
        assert found[0] == found[1]


def test_what_differs_in_its_roles_or_order_is_no_duplicate(tokenizer, tmp_path):
    def said(role):
        return [{"role": "user", "content": "a"}, {"role": role, "content": "b"},
                {"role": "assistant", "content": "c"}]  # fmt: skip

    chats = Records([{"messages": said("user")}, {"messages": said("assistant")}])
    assert prepare(chats, ChatFormat(), tokenizer, tmp_path / "c", held_out=0).dropped == 0
    pairs = [{"prompt": "q", "chosen": x, "rejected": y} for x, y in ("ab", "ba", "ab")]
    assert prepare(Records(pairs), PairFormat(), tokenizer, tmp_path / "p", held_out=0).dropped == 1


def test_documents_are_encoded_many_at_once(tokenizer, tmp_path, monkeypatch):
    sizes = []
    encode = type(tokenizer).encode_batch

    def counted(self, texts):
        sizes.append(len(texts))
        return encode(self, texts)

    monkeypatch.setattr(type(tokenizer), "encode_batch", counted)
    prepare(documents(200), DocumentFormat(), tokenizer, tmp_path / "p")
    assert sizes[0] == 200
    assert sum(sizes[1:]) < 10  # of the tokenizer's golden vectors


@pytest.mark.parametrize("held_out", [0.001, 0.5])
def test_each_split_has_a_document(tokenizer, tmp_path, held_out):
    for count in (2, 3, 5):
        folder = tmp_path / str(count)
        manifest = prepare(documents(count), DocumentFormat(), tokenizer, folder, held_out)
        assert manifest.documents == count
        assert all(split.documents for split in manifest.splits.values())


def test_one_document_is_divided_only_as_settings_say(tokenizer, tmp_path):
    source = Records([{"text": "a long story " * 50}])
    with pytest.raises(SettingError, match=r"one document cannot be divided .*max_characters"):
        prepare(source, DocumentFormat(), tokenizer, tmp_path / "p")
    cut = prepare(source, DocumentFormat(max_characters=100), tokenizer, tmp_path / "cut")
    assert cut.splits["held_out"].documents == 1
    whole = prepare(source, DocumentFormat(), tokenizer, tmp_path / "whole", held_out=0)
    assert list(whole.splits) == ["train"]


def test_masks_and_pairs_are_kept(tokenizer, tmp_path):
    chats = Records([{"prompt": f"q{n}", "completion": f"a{n}"} for n in range(20)])
    prepare(chats, ChatFormat(), tokenizer, tmp_path / "chat")
    prepared = Prepared.open(tmp_path / "chat")
    assert prepared.masked
    tokens, learned = prepared.read(0, int(prepared.offsets[1]))
    assert tokenizer.decode(tokens[learned].tolist(), specials=True).startswith("a")
    pairs = Records([{"prompt": "q", "chosen": f"a{n}", "rejected": "b"} for n in range(20)])
    manifest = prepare(pairs, PairFormat(), tokenizer, tmp_path / "pair", held_out=0.3)
    for name, split in manifest.splits.items():
        assert split.documents % 2 == 0
        texts = [tokenizer.decode(d) for d in all_documents(Prepared.open(tmp_path / "pair", name))]
        assert all(text.startswith("qa") for text in texts[::2])
        assert set(texts[1::2]) == {"qb"}


def test_all_pairs_of_a_ranked_list_are_in_one_split(tokenizer, tmp_path):
    answers = [f"a{n}" for n in range(4)]
    lists = Records(
        [{"prompt": f"q{n}", "completions": answers, "ranks": [1, 2, 3, 4]} for n in range(40)]
    )
    manifest = prepare(lists, PairFormat(), tokenizer, tmp_path / "pair", held_out=0.3)
    asked = {}
    for name in manifest.splits:
        texts = [tokenizer.decode(d) for d in all_documents(Prepared.open(tmp_path / "pair", name))]
        assert len(texts) % 12 == 0
        asked[name] = {text.split("a")[0] for text in texts}
    assert len(asked["train"]) + len(asked["held_out"]) == 40
    assert not asked["train"] & asked["held_out"]


def test_documents_stay_whole_across_shards(tmp_path):
    written = [np.arange(n % 5 + 1) for n in range(40)]
    writer = SplitWriter(tmp_path / "train", 10, limit=16)
    for tokens in written:
        writer.append([(tokens, tokens > 0, ())], bytes=1)
    facts = writer.facts()
    assert facts.shards > 3
    folder = tmp_path
    manifest = prepare_manifest(facts)
    prepared = Prepared(folder, "train", manifest, facts)
    assert all_documents(prepared) == [tokens.tolist() for tokens in written]
    start, end = prepared.offsets[20:22]
    assert prepared.read(start, end)[1].tolist() == (written[20] > 0).tolist()


def prepare_manifest(facts):
    from culm.data.manifest import Manifest

    names = dict.fromkeys(("source", "format", "tokenizer"), "x")
    numbers = dict.fromkeys(
        ("group", "vocabulary", "end_of_text", "held_out", "seed", "dropped"), 0
    )
    return Manifest(**names, **numbers, gives="documents", splits={"train": facts})


def test_a_growing_array_is_a_plain_npy_file(tmp_path):
    writer = ArrayWriter(tmp_path / "a.npy", np.dtype(np.uint32))
    for start in range(0, 3000, 1000):
        writer.append(np.arange(start, start + 1000))
    writer.close()
    assert np.load(tmp_path / "a.npy").tolist() == list(range(3000))


def test_changes_on_disk_are_found(tokenizer, tmp_path):
    folder = tmp_path / "p"
    prepare(documents(20), DocumentFormat(), tokenizer, folder)
    path = folder / "train" / "tokens-00000.npy"
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[-1] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(SettingError, match=r"tokens-00000\.npy: changed .*to prepare it again"):
        verify(folder)
    path.write_bytes(good[:-2])
    with pytest.raises(SettingError, match=r"tokens-00000\.npy: \d+ bytes where \d+ were written"):
        Prepared.open(folder)
    path.unlink()
    with pytest.raises(SettingError, match=r"tokens-00000\.npy: missing"):
        Prepared.open(folder)
    path.write_bytes(good)
    with pytest.raises(SettingError, match="prepared with another tokenizer"):
        Prepared.open(folder, tokenizer=Bytes().build().fingerprint)
    with pytest.raises(SettingError, match="there is no split 'test'; it has train, held_out"):
        Prepared.open(folder, "test")
    (folder / "manifest.json").write_text(json.dumps({"tokens": 3}))
    with pytest.raises(
        SettingError, match=r"manifest\.json: damaged; delete .* to prepare it again"
    ):
        Prepared.open(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(SettingError, match=r"manifest\.json: damaged"):
        Prepared.open(folder)
    with pytest.raises(SettingError, match="not a prepared corpus"):
        Prepared.open(tmp_path)


def test_nothing_is_half_written(tokenizer, tmp_path, monkeypatch):
    folder = tmp_path / "p"

    def full(self, values):
        raise OSError(errno.ENOSPC, "No space left on device")

    def interrupted():
        yield {"text": "a"}
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ArrayWriter, "append", full)
        with pytest.raises(SettingError, match=r"p: could not be written \(No space left"):
            prepare(documents(9), DocumentFormat(), tokenizer, folder)
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        prepare(Records(interrupted()), DocumentFormat(), tokenizer, folder)
    assert not list(tmp_path.iterdir())
    with pytest.raises(SettingError, match="the records: record 2: no text in 'text'"):
        prepare(Records([{"text": "a"}, {"x": 1}]), DocumentFormat(), tokenizer, folder)
    with pytest.raises(SettingError, match="the records: nothing to read"):
        prepare(Records([{"text": " "}]), DocumentFormat(), tokenizer, folder)
    assert not list(tmp_path.iterdir())
    (tmp_path / "p.partial").mkdir()  # of a person
    prepare(documents(9), DocumentFormat(), tokenizer, folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p", "p.partial"]
    with pytest.raises(SettingError, match="p: already exists"):
        prepare(documents(9), DocumentFormat(), tokenizer, folder)


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("".join(f"this is line {n} of the file\n" for n in range(400_000)))
    tokenizer, format = Bytes().build(), DocumentFormat(max_characters=1 << 14)
    source = open_source(path)
    tracemalloc.start()
    manifest = prepare(source, format, tokenizer, tmp_path / "p")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert manifest.bytes == path.stat().st_size > 12_000_000
    assert peak < 36_000_000  # a few blocks of text; the tokens alone would be 100 MB as a list


def test_an_older_corpus_is_replaced_only_on_request(tokenizer, tmp_path):
    folder = tmp_path / "p"
    prepare(documents(9), DocumentFormat(), tokenizer, folder)
    with pytest.raises(SettingError, match=r"p: already exists; .* --overwrite"):
        prepare(documents(5), DocumentFormat(), tokenizer, folder)
    new = prepare(documents(5), DocumentFormat(), tokenizer, folder, held_out=0, overwrite=True)
    assert Manifest.read(folder) == new
    verify(folder)
    assert not (folder / "held_out").exists()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(SettingError, match="p: holds other files than a corpus"):
        prepare(documents(5), DocumentFormat(), tokenizer, folder, overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_second_process_that_prepares_the_same_folder(tokenizer, tmp_path):
    """The first one is not disturbed, and its corpus is what its manifest says."""
    folder = tmp_path / "p"

    def slow():
        for number, record in enumerate(documents(9).records):
            if number == 4:
                with pytest.raises(InUseError, match="p: another process is writing it"):
                    prepare(documents(5), DocumentFormat(), tokenizer, folder)
            yield record

    manifest = prepare(Records(slow()), DocumentFormat(), tokenizer, folder)
    assert manifest.documents == 9
    verify(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_a_manifest_says_what_was_read(tokenizer, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("one\n\ntwo\n\nthree")
    source = open_source(text, "paragraphs")
    prepare(source, DocumentFormat(), tokenizer, tmp_path / "p", held_out=0)
    found = Manifest.read(tmp_path / "p").origin
    assert list(found) == [str(text)]
    assert found[str(text)].sha256 == hashlib.sha256(text.read_bytes()).hexdigest()
    assert found[str(text)].bytes == text.stat().st_size


# -- after a kill -----------------------------------------------------------------------------


def long_records(kind):
    """A few megabytes, with a number for each where the format has columns."""
    text = "the quick brown fox jumps over the lazy dog. " * 40
    if kind == "document":
        return [{"text": f"{n}: {text}"} for n in range(1500)]
    return [
        {"prompt": f"{n}?", "completion": f"{n}: {text}", "label": n % 3 == 0} for n in range(1500)
    ]


def files_in(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class Killed(BaseException):
    """As if the process were gone."""


class Interrupted(Records):
    """Ends the process after so many records."""

    def __iter__(self):
        for number, record in enumerate(super().__iter__()):
            if number == 1200:
                raise Killed
            yield record


@pytest.mark.parametrize("kind", ["document", "label"])
def test_no_batch_is_tokenised_twice_after_a_kill(kind, tokenizer, tmp_path, monkeypatch) -> None:
    """And the corpus is the same byte for byte; nothing is left next to it."""
    records = long_records(kind)
    format = DocumentFormat() if kind == "document" else LabelFormat()
    prepare(Records(records), format, tokenizer, tmp_path / "whole")
    with pytest.raises(Killed):
        prepare(Interrupted(records), format, tokenizer, tmp_path / "out")
    left = list((tmp_path / ".out.tokens").glob("*.npz"))
    assert len(left) == 2
    left[0].write_bytes(left[0].read_bytes()[:-100])  # a disk that was full, say
    encoded = []
    encode = type(format).encode
    monkeypatch.setattr(
        type(format), "encode",
        lambda self, texts, words: encoded.append(len(texts)) or encode(self, texts, words),
    )  # fmt: skip
    prepare(Records(records), format, tokenizer, tmp_path / "out")
    assert sum(encoded) < len(records) * 0.85  # all but one batch
    assert files_in(tmp_path / "out") == files_in(tmp_path / "whole")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_other_settings_use_nothing_of_a_killed_process(tokenizer, tmp_path) -> None:
    records = long_records("document")
    with pytest.raises(Killed):
        prepare(Interrupted(records), DocumentFormat(), tokenizer, tmp_path / "out")
    other = DocumentFormat(max_characters=500)
    prepare(Records(records), other, tokenizer, tmp_path / "out")
    prepare(Records(records), other, tokenizer, tmp_path / "whole")
    assert files_in(tmp_path / "out") == files_in(tmp_path / "whole")


@pytest.mark.parametrize(
    ("name", "place", "message"),
    [
        ("offsets", 128 + 8 * 5, "damaged"),  # an offset that is not in order any more
        ("offsets", -8, "damaged"),  # beyond the tokens
        ("tokens", 60, "cannot be read"),  # in the header
    ],
)
def test_a_damaged_array_is_named(tokenizer, tmp_path, name, place, message):
    prepare(documents(50), DocumentFormat(), tokenizer, tmp_path / "p", held_out=0)
    path = tmp_path / "p" / "train" / f"{name}-00000.npy"
    data = bytearray(path.read_bytes())
    data[place] ^= 1 if name == "tokens" else 0xFF
    path.write_bytes(data)
    with pytest.raises(SettingError, match=rf"{name}-00000\.npy: {message}.*; delete this corpus"):
        Prepared.open(tmp_path / "p")
