"""Messages name a file and a line, whatever the file is; without a suffix its content decides."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from culm.config import SettingError
from culm.source import open_source
from culm.source.source import LeftOutOnly, found_in


def places(path: Path, content: str | bytes, **options: Any) -> list[tuple[int, Any]]:
    """The line of each record, and its text."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = [(record.place, record.get("text")) for record in open_source(path, **options)]
    assert all(place.startswith(f"{path}: line ") for place, _ in found)
    return [(int(place.rpartition(" ")[2]), text) for place, text in found]


def test_documents_of_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    text = "\none\ntwo\n\n  \nthree\r\n\r\n\r\nfour\n"
    assert places(path, text, split="paragraphs") == [(2, "one\ntwo"), (6, "three"), (9, "four")]
    lines = [(2, "one"), (3, "two"), (6, "three"), (9, "four")]
    assert places(path, text, split="lines") == lines
    assert places(path, text) == [(2, text)]
    assert places(path, "a\n<|s|>\nb\nc<|s|>d", separator="<|s|>") == [
        (1, "a"),
        (3, "b\nc"),
        (4, "d"),
    ]
    long = "word \n" * 1_000_000  # cut into several documents
    found = places(path, long)
    assert "".join(text for _, text in found) == long
    assert all(long.split("\n")[line - 1] for line, _ in found)
    assert found[1][0] > 600_000


@pytest.mark.parametrize("indent", [None, 1])
def test_entries_of_a_json_list(indent: int | None, tmp_path: Path) -> None:
    values = [{"text": "a\n[{,]"}, "b", {"text": "c", "d": [{"e": 1}]}]
    content = json.dumps(values, indent=indent)
    found = places(tmp_path / "a.json", content)
    assert [text for _, text in found] == ["a\n[{,]", "b", "c"]
    lines = content.split("\n")
    for line, text in found:
        assert any(json.dumps(text) in one for one in lines[line - 1 : line + 1])
    assert places(tmp_path / "b.json", '\n{\n"text": "one"}') == [(2, "one")]
    assert places(tmp_path / "c.json", "[]") == []


def test_rows_of_a_parquet_file_count_from_one(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.Table.from_pylist([{"n": n} for n in range(300)])
    parquet.write_table(table, tmp_path / "a.parquet")
    found = [record.place for record in open_source(tmp_path)]
    assert found[-1] == f"{tmp_path / 'a.parquet'}: row 300"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"good\n\nbad \xff", "line 3: byte 10 is not UTF-8; save the file as UTF-8"),
        ("a.txt.gz", gzip.compress(b"\n\xff", mtime=0), "line 2: byte 1 is not UTF-8"),
        ("a.jsonl", b'{"text": 1}\n{"a": "\xff"}', r"line 2: byte 19 is not UTF-8"),
        ("a.jsonl", b"{}\n\n{oops", "line 3: not readable as JSON: Expecting .* at column 2; corr"),
        ("a.json", b"[1,\n 2,\n 3", "line 3: not readable as JSON: Expecting .* at column 3; corr"),
        ("a.json", b'[{"a": 1},\n 2]', "line 2: expected an object, found a number"),
    ],
)
def test_what_cannot_be_read(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SettingError, match=rf"{name}: {message}"):
        list(found_in(open_source(tmp_path / name), lambda record: iter([record]), LeftOutOnly()))


def test_bad_entries_of_a_list_are_left_out_like_bad_lines(tmp_path: Path) -> None:
    for name, content in (("a.json", '[1, {"text": "a"}]'), ("a.jsonl", '1\n{"text": "a"}')):
        (tmp_path / name).write_text(content)
        bad, good = open_source(tmp_path / name, invalid="skip")
        assert bad.error == f"{tmp_path / name}: line 1: expected an object, found a number"
        assert (good["text"], good.error) == ("a", None)


def test_a_file_without_a_known_suffix_is_read_by_its_content(tmp_path: Path) -> None:
    record = {"prompt": "1 + 1?", "answer": "2"}
    for content in (
        json.dumps(record) + "\n" + json.dumps(record),
        json.dumps([record] * 2, indent=1),
    ):
        for name, written in (
            ("questions", content.encode()),
            ("q.gz", gzip.compress(content.encode())),
        ):
            (tmp_path / name).write_bytes(written)
            assert list(open_source(tmp_path / name)) == [record] * 2
    (tmp_path / "words").write_text("[1] is a reference, {x} a set.")
    assert [one["text"] for one in open_source(tmp_path / "words")] == [
        "[1] is a reference, {x} a set."
    ]
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist([record]), tmp_path / "table")
    assert list(open_source(tmp_path / "table")) == [record]
