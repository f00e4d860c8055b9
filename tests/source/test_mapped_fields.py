"""`data.fields`: fields of any source under the names that formats ask for."""

import json

import pytest

from culm.config import SettingError, parse
from culm.data.format.pair import PairFormat
from culm.data.manifest import Manifest
from culm.data.prepare import prepare
from culm.data.settings import DataConfig
from culm.plan.sample import sample


def lines(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def opened(path, **settings):
    return parse(DataConfig, {"path": path, **settings}, "data")


def test_fields_are_mapped_by_name(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"content": "one", "n": 1}, {"content": "two"})
    data = opened(path, fields={"text": "content"})
    assert list(data.open()) == [{"text": "one", "n": 1}, {"text": "two"}]
    (tmp_path / "b.csv").write_text("content\nthree\n")
    data = opened([path, str(tmp_path / "b.csv")], fields={"text": "content"}, max_documents=3)
    assert [record["text"] for record in data.open()] == ["one", "two", "three"]


def test_a_dot_leads_into_objects_and_names_may_be_swapped(tmp_path):
    record = {"a": {"body": "one", "x": 2}, "b": {"body": "two"}, "c.d": "three", "e": "four"}
    path = lines(tmp_path / "a.jsonl", record)
    fields = {"text": "a.body", "e": "b.body", "c": "c.d", "e2": "e"}
    [found] = opened(path, fields=fields).open()
    assert found == {"text": "one", "e": "two", "c": "three", "e2": "four", "a": {"x": 2}}
    pair = {"prompt": "q", "rejected": "good", "chosen": "bad"}
    path = lines(tmp_path / "b.jsonl", pair)
    swap = {"chosen": "rejected", "rejected": "chosen"}
    [found] = opened(path, fields=swap).open()
    good, bad = PairFormat().contents(found)
    assert (good.messages[-1]["content"], bad.messages[-1]["content"]) == ("good", "bad")


def test_what_is_displaced_or_missing_is_counted(tokenizer, tmp_path):
    records = [{"text": "old", "body": "new"}, {"text": "alone"}, {"body": "newer"}]
    data = opened(lines(tmp_path / "a.jsonl", *records), fields={"text": "body"})
    source = data.open()
    for given in (source, sample(source, data.format)):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        prepare(given, data.format, tokenizer, out, held_out=0)
        notes = Manifest.read(out).notes
        assert notes["records have the key 'text of the file', which is not used"] == 1
        assert notes["records have no 'body', which data.fields.text names"] == 1
        assert Manifest.read(out).documents == 3
        assert any("a.jsonl" in name for name in Manifest.read(out).origin) == (given is source)


def test_a_field_that_is_not_there_is_named(tmp_path):
    data = opened(lines(tmp_path / "a.jsonl", {"content": "one"}), fields={"text": "body"})
    with pytest.raises(SettingError, match=r"no text in 'text'; it has content \(text\)"):
        sample(data.open(), data.format)


def test_fields_belong_to_a_path():
    with pytest.raises(SettingError, match="fields: it has an effect with path only"):
        parse(DataConfig, {"prepared": "x", "fields": {"text": "body"}}, "data")
