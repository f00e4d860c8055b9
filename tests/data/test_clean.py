"""Cleaning: what is dropped is counted, and neither processes nor a kill change the result."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from culm.config import SettingError, parse
from culm.data.clean.chunk import clean_unit, pack, unpack
from culm.data.clean.cleaner import Cleaner, kept_beside
from culm.data.clean.pii import Pii
from culm.data.format.chat import ChatFormat
from culm.data.format.document import DocumentFormat
from culm.data.format.pair import PairFormat
from culm.data.manifest import Manifest
from culm.data.notes import Notes
from culm.data.prepare import prepare
from culm.data.prepared import Prepared
from culm.data.settings import DataConfig
from culm.data.units import units_of
from culm.source import open_source
from culm.tokenizer.tokenizer import Tokenizer

WORDS = "the river and a stone with green moss that have been warm of old to be here".split()
ALL = ["unicode", "repetition", "gopher", "pii", "near_duplicates"]


def text(chance: random.Random, words: int = 120) -> str:
    return ". ".join(" ".join(chance.choices(WORDS, k=12)).capitalize() for _ in range(words // 12))


def corpus(folder: Path, count: int = 60) -> Path:
    """Of ten texts: six good, two short, one a near-duplicate, one with an address."""
    chance, path = random.Random(0), folder / "texts.jsonl"
    records = []
    for number in range(count):
        own = text(chance)
        match number % 10:
            case 3 | 7:
                own = f"Too short, number {number}."
            case 5:
                own = records[-1]["text"].strip("\x07") + " Indeed."
            case 9:
                own += f" Write to reed{number}@example.org."
        records.append({"text": own + ("\x07" if number % 4 == 0 else "")})
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return path


def settings(path: Path, clean: list, **more) -> DataConfig:
    return parse(DataConfig, {"path": str(path), "clean": clean, **more}, "data")


def prepared(data: DataConfig, tokenizer: Tokenizer, out: Path) -> Manifest:
    return prepare(data.open(), data.format, tokenizer, out, 0.1, cleaner=data.cleaner(out))


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def cleaned(path: Path, clean: list, format=DocumentFormat(), **options) -> tuple[list, Cleaner]:
    data = settings(path, clean, format=format.model_dump(), **options)
    cleaner = data.cleaner()
    units = units_of(data.open(), data.format, Notes("error"))
    return [unit.contents for unit in cleaner.clean(units)], cleaner


def test_every_drop_is_counted_by_reason_with_samples(tokenizer, tmp_path) -> None:
    manifest = prepared(settings(corpus(tmp_path), ALL), tokenizer, tmp_path / "out")
    facts = {one.settings["kind"]: one for one in manifest.clean}
    assert list(facts) == ALL
    short = facts["gopher"].dropped["fewer than 50 words"]
    assert (short.documents, len(short.samples)) == (12, 5)
    assert short.samples[0] == "Too short, number 3."
    assert short.bytes == sum(len(f"Too short, number {n}.") for n in range(60) if n % 10 in (3, 7))
    assert facts["near_duplicates"].dropped["like an earlier document"].documents == 6
    assert facts["pii"].changes == {"email addresses are masked": 6}
    assert facts["unicode"].changes == {"control characters are removed": 15}
    assert manifest.documents == 60 - 12 - 6
    assert "12 documents are dropped by gopher: fewer than 50 words." in manifest.remarks
    assert "6 email addresses are masked (pii)." in manifest.remarks
    assert Manifest.read(tmp_path / "out") == manifest


def test_any_number_of_processes_writes_the_same_bytes(tokenizer, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("culm.data.clean.cleaner.CHUNK", 3000)
    path = corpus(tmp_path)
    prepared(settings(path, ALL), tokenizer, tmp_path / "one")
    prepared(settings(path, ALL, workers=2), tokenizer, tmp_path / "two")
    assert files_in(tmp_path / "one") == files_in(tmp_path / "two")
    assert {found.name for found in tmp_path.iterdir()} == {"texts.jsonl", "one", "two"}


def test_the_size_of_chunks_changes_nothing(tokenizer, tmp_path, monkeypatch) -> None:
    path = corpus(tmp_path)
    prepared(settings(path, ALL), tokenizer, tmp_path / "one")
    monkeypatch.setattr("culm.data.clean.cleaner.CHUNK", 1)
    prepared(settings(path, ALL), tokenizer, tmp_path / "two")
    assert files_in(tmp_path / "one") == files_in(tmp_path / "two")


def test_chunks_are_not_cleaned_again_after_a_stop(tokenizer, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("culm.data.clean.cleaner.CHUNK", 3000)
    done = []
    monkeypatch.setattr(
        "culm.data.clean.chunk.clean_unit",
        lambda steps, texts, sizes: done.append(texts) or clean_unit(steps, texts, sizes),
    )
    data, out = settings(corpus(tmp_path), ALL), tmp_path / "out"

    class Stopped(Exception):
        pass

    def stopping(records):
        for number, record in enumerate(records):
            if number == 40:
                raise Stopped
            yield record

    def units(source):
        return units_of(source, data.format, Notes("error"))

    with pytest.raises(Stopped):
        for _ in data.cleaner(out).clean(units(_Stops(data.open(), stopping))):
            pass
    first = len(done)
    assert 20 < first <= 40
    whole = prepared(data, tokenizer, out)
    assert len(done) == 60  # none twice
    assert not kept_beside(out).exists()
    prepared(data, tokenizer, tmp_path / "other")
    assert files_in(out) == files_in(tmp_path / "other")
    assert whole.documents == 42


class _Stops:
    def __init__(self, source, through) -> None:
        self._source, self._through = source, through
        self.name, self.size, self.left_out = source.name, source.size, source.left_out

    def __iter__(self):
        return self._through(iter(self._source))


def test_other_settings_or_a_damaged_chunk_are_cleaned_again(tmp_path, monkeypatch) -> None:
    done = []
    monkeypatch.setattr(
        "culm.data.clean.chunk.clean_unit",
        lambda steps, texts, sizes: done.append(texts) or clean_unit(steps, texts, sizes),
    )
    path, out = corpus(tmp_path), tmp_path / "out"

    def count(clean: list) -> int:
        done.clear()
        data = settings(path, clean)
        list(data.cleaner(out).clean(units_of(data.open(), data.format, Notes("error"))))
        return len(done)

    assert (count(ALL), count(ALL)) == (60, 0)
    assert count([*ALL[:-1], {"kind": "near_duplicates", "words": 13}]) == 60
    for file in kept_beside(out).iterdir():
        file.write_bytes(file.read_bytes()[:-9])
    assert (count(ALL), count(ALL)) == (60, 0)


def test_what_others_put_into_the_hidden_folder_stays(tokenizer, tmp_path) -> None:
    kept = kept_beside(tmp_path / "out")
    kept.mkdir()
    (kept / "notes.txt").write_text("mine")
    prepared(settings(corpus(tmp_path), ["pii"]), tokenizer, tmp_path / "out")
    assert files_in(kept) == {"notes.txt": b"mine"}


@pytest.mark.slow
def test_a_killed_prepare_continues_and_leaves_no_process(tokenizer, tmp_path) -> None:
    path, out = corpus(tmp_path, 25_000), tmp_path / "out"
    tokenizer.save(tmp_path / "tokenizer")
    words = f"prepare {path} --held-out 0.1 --out {out} --tokenizer {tmp_path}/tokenizer".split()
    words += [f"data.clean={json.dumps(ALL)}", "data.workers=2"]
    code = "import sys; from culm.cli import main; sys.argv[0] = 'culm'; sys.exit(main())"
    command = [sys.executable, "-c", code, *words]
    child = subprocess.Popen(command, start_new_session=True)
    chunks = kept_beside(out)
    while child.poll() is None and len(list(chunks.glob("*.npz"))) < 4:
        time.sleep(0.05)
    workers = _children(child.pid)
    assert workers
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not out.exists()
    deadline = time.monotonic() + 20
    while any(map(_lives, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(_lives, workers))
    times = _times(chunks)
    assert len(times) >= 4
    child, kept = subprocess.Popen(command), dict[str, int]()
    while child.poll() is None:
        kept |= _times(chunks)
        time.sleep(0.02)
    assert child.returncode == 0
    assert len(kept) > len(times)
    assert {name: kept[name] for name in times} == times  # none was written again
    prepared(settings(path, ALL), tokenizer, tmp_path / "whole")
    found, whole = files_in(out), files_in(tmp_path / "whole")
    manifests = [json.loads(files.pop("manifest.json")) for files in (found, whole)]
    assert [one.pop("prepare") for one in manifests][1] == []  # the command, which only one has
    assert len({one.pop("sha256") for one in manifests}) == 2
    assert manifests[0] == manifests[1]
    assert found == whole


def _times(folder: Path) -> dict[str, int]:
    found = {}
    for path in folder.glob("*.npz"):
        with suppress(FileNotFoundError):  # the corpus is complete, and they are removed
            found[path.name] = path.stat().st_mtime_ns
    return found


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    if not path.exists():
        pytest.skip("this system does not list the children of a process")
    return [int(one) for one in path.read_text().split()]


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_dialogues_keep_their_form(tmp_path) -> None:
    record = {
        "messages": [
            {"role": "user", "content": "I am reed@example.org."},
            {"role": "assistant", "content": "Noted: reed@example.org", "weight": 1},
        ],
        "tools": [{"name": "mail"}],
    }
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps(record))
    [[dialogue]], cleaner = cleaned(path, ["pii"], ChatFormat())
    assert [one["content"] for one in dialogue.messages] == ["I am [EMAIL].", "Noted: [EMAIL]"]
    assert [one["role"] for one in dialogue.messages] == ["user", "assistant"]
    assert dialogue.tools == [{"name": "mail"}]
    assert cleaner.facts[0].changes == {"email addresses are masked": 2}


def test_a_pair_that_masking_makes_equal_is_dropped(tmp_path) -> None:
    path = tmp_path / "pairs.jsonl"
    pairs = [
        {"prompt": "Whom to ask?", "chosen": "a@b.org", "rejected": "c@d.org"},
        {"prompt": "Whom to ask?", "chosen": "Ask a@b.org", "rejected": "nobody"},
    ]
    path.write_text("".join(json.dumps(one) + "\n" for one in pairs))
    units, cleaner = cleaned(path, ["pii"], PairFormat())
    assert len(units) == 1
    [reason] = cleaner.facts[0].dropped
    assert reason == "its answers are the same after cleaning"


def test_a_document_of_which_nothing_is_left_is_dropped(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "\x01\x02"}) + "\n" + json.dumps({"text": "kept"}))
    units, cleaner = cleaned(path, ["unicode"])
    assert units == [["kept"]]
    assert cleaner.facts[0].dropped["no text is left"].documents == 1


def test_samples_are_masked_too(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "Ask reed@example.org."}))
    _, cleaner = cleaned(path, ["gopher", "pii"])
    assert cleaner.facts[0].dropped["fewer than 50 words"].samples == ("Ask [EMAIL].",)


def test_later_stages_do_not_count_what_is_a_near_duplicate(tmp_path) -> None:
    chance, path = random.Random(1), tmp_path / "a.jsonl"
    own = text(chance) + " Ask reed@example.org."
    path.write_text("".join(json.dumps({"text": own}) + "\n" for _ in range(3)))
    units, cleaner = cleaned(path, ["near_duplicates", "pii"])
    assert len(units) == 1
    assert cleaner.facts[1].changes == {"email addresses are masked": 1}


def test_outcomes_survive_their_bytes() -> None:
    steps = [Pii().build()]
    given = [clean_unit(steps, texts, [1]) for texts in (["a@b.org \ud800"], ["nothing"])]
    assert unpack(pack(given)) == given


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"clean": ["gofer"]}, r"data\.clean\[0\]\.kind: 'gofer' is not one of"),
        ({"clean": "gopher", "format": "chat"}, "clean: the rules of gopher are for documents"),
        ({"workers": 2}, "workers: it has an effect with clean or ray=local only"),
        ({"workers": 2, "ray": "auto", "clean": "pii"}, "workers: it has an effect with ray=local"),
        ({"path": [], "prepared": "x", "ray": "auto"}, "ray: it has an effect with path or tasks"),
        ({"path": [], "prepared": "runs/x", "clean": "pii"}, "clean: a prepared corpus is token"),
        (
            {
                "path": [],
                "tasks": [{"kind": "prompts", "path": "x"}],
                "format": "chat",
                "clean": "pii",
            },
            "clean: tasks write their own text",
        ),
        ({"clean": {"kind": "language", "keep": "xx"}}, None),
        ({"clean": {"kind": "decontaminate"}}, "give evaluation sets here or in tasks"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(tmp_path, values, message) -> None:
    path = corpus(tmp_path, 2)
    if message is None:
        pytest.importorskip("lingua")
        with pytest.raises(SettingError, match=r"language\.keep: there is no language 'xx'"):
            cleaned(path, [values["clean"]])
        return
    with pytest.raises(SettingError, match=message):
        parse(DataConfig, {"path": str(path), **values}, "data")


def test_a_corpus_of_which_all_is_dropped_says_why(tokenizer, tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "Short."}))
    with pytest.raises(SettingError, match=r"nothing to read: 1 documents are dropped by gopher"):
        prepared(settings(path, ["gopher"]), tokenizer, tmp_path / "out")


def test_the_settings_are_part_of_the_fingerprint(tokenizer, tmp_path) -> None:
    path = corpus(tmp_path)
    found = set()
    for number, words in enumerate((50, 49, None)):  # which drop the same documents
        clean = [] if words is None else ["pii", {"kind": "gopher", "min_words": words}]
        prepared(settings(path, clean), tokenizer, tmp_path / str(number))
        found.add(Prepared.open(tmp_path / str(number)).fingerprint)
    assert len(found) == 3


def test_workers_need_no_torch(tmp_path) -> None:
    """So they start fast, and none of them takes its memory."""
    code = "import sys, culm.data.clean, culm.data.clean.chunk; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_records_of_a_source_are_counted_as_ever(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "kept", "url": "x"}))
    notes = Notes("error")
    units = units_of(open_source(str(path)), DocumentFormat(), notes)
    assert [unit.contents for unit in Cleaner([Pii()]).clean(units)] == [["kept"]]
    assert notes.counts == {"records have the key 'url', which is not used": 1}
