"""What the first records of a source say: its kinds, its format, and samples of it."""

import json

import pytest

from culm.config import SettingError
from culm.data.format import DocumentFormat
from culm.data.sniff import first_records, format_of, kinds_in, samples
from culm.source import open_source


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        ({"text": "a", "label": 1}, "document"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "pair"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
         "chat"),
        ({"instruction": "a", "output": "b", "score": 3}, "chat"),
        ({"prompt": "a", "completion": "b", "label": True}, "label"),
        ({"prompt": "a", "answer": "b"}, "prompt"),
    ],
)  # fmt: skip
def test_the_format_is_what_most_records_are(record, kind, tmp_path):
    source = open_source(write(tmp_path / "a.jsonl", {"odd": 1}, record, record))
    assert format_of(first_records(source, "error"), source.name).kind == kind


def test_records_of_no_format_are_refused_with_what_they_have(tmp_path):
    source = open_source(write(tmp_path / "a.jsonl", {"content": "a", "n": 1}))
    with pytest.raises(
        SettingError,
        match=r"no format that is read \(document, .*it has content \(text\), n \(a",
    ):
        format_of(first_records(source, "error"), source.name)


def test_the_first_records_are_read_and_no_more(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = ["{oops", *(json.dumps({"text": f"number {n}"}) for n in range(9))]
    path.write_text("\n".join([*lines, "{oops"]))
    with pytest.raises(SettingError, match=r"line 1: not readable as JSON.*data\.invalid=skip"):
        first_records(open_source(path), "error")
    found = first_records(open_source(path, invalid="skip"), "skip")
    assert [record["text"] for record in found] == [f"number {n}" for n in range(5)]


def test_samples_are_decoded(tokenizer, tmp_path):
    source = open_source(write(tmp_path / "a.jsonl", {"text": "words " * 5000}, {"odd": 1}, "b"))
    records = first_records(source, "error")
    [[(text, learned)], [(short, _)]] = samples(records, DocumentFormat(), tokenizer)
    assert text.startswith("words words")
    assert len(text) < 5000
    assert learned
    assert short == "b" + tokenizer.decode([tokenizer.end_of_text], specials=True)


def test_the_kinds_of_a_folder_are_named(tmp_path):
    for name in ("a.txt", "b.txt", "c.jsonl.bz2", "d.csv"):
        (tmp_path / name).write_text("x")
    (tmp_path / "page").write_text("<html>x")
    [sentence] = kinds_in(open_source(tmp_path))
    assert sentence == f"{tmp_path}: read as 2 text, 1 json bzip2, 1 table."
    found = list(kinds_in(open_source([tmp_path / "page", "some/texts"])))
    assert [one.partition(": ")[2] for one in found] == [
        "read as 1 html.",
        "read as a dataset of the Hugging Face hub.",
    ]
