"""A plan says what the run will do: the same refusal, or the same counts of what is left out."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import culm.verbs.plan_needs
from culm.config import SettingError, parse
from culm.eval.report import write_report
from culm.run.settings import RunConfig
from culm.run.train import train
from culm.verbs.plan import show_plan

REFUSED = "this run cannot start:\n"
DOCUMENTS = [{"text": f"some text of number {n}"} for n in range(12)]
U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
LONG = "q" * 100  # more than the context


def turns(question: str, answer: Any, **more: Any) -> dict[str, Any]:
    said = {"role": "assistant", "content": answer, **more}
    return {"messages": [{"role": "user", "content": question}, said]}


def pair(question: Any, chosen: Any, rejected: Any = "no") -> dict[str, Any]:
    return {"prompt": question, "chosen": chosen, "rejected": rejected}


CHATS = [turns(f"q{n}", f"a{n}") for n in range(12)]
PAIRS = [pair(f"q{n}", f"a{n}") for n in range(12)]
ASKED = [{"prompt": f"q{n}", "answer": f"a{n}"} for n in range(40)]
SHARED = [
    {"conversations": [{"from": "human", "value": f"q{n}"}, {"from": "gpt", "value": f"a{n}"}]}
    for n in range(12)
]
ALPACA = [{"instruction": f"q{n}", "input": "", "output": f"a{n}"} for n in range(12)]

GOOD = {"document": DOCUMENTS, "chat": CHATS, "pair": PAIRS, "prompt": ASKED[:12]}


def lines(*records: Any) -> str:
    return "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in records)


Plan = Callable[..., tuple[str, list[str]]]


@pytest.fixture
def both(
    stage: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Plan:  # fmt: skip
    """Plans and trains on a file: why both refuse it, or "", and the remarks of both."""
    monkeypatch.setattr(culm.verbs.plan_needs, "_rate", lambda *_: 1e9)  # which takes seconds
    monkeypatch.setattr(culm.verbs.plan_needs, "process_bytes", lambda *_: None)

    def work(format: str, content: str | bytes, name: str = "x.jsonl", **data: Any) -> Any:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        settings = stage({"pair": "dpo"}.get(format, "sft"), steps=1)
        settings["data"] = {"path": str(path), "format": format, **data}
        return compared({**settings, "folder": str(tmp_path / f"run of {name}")})

    def compared(settings: dict[str, Any]) -> tuple[str, list[str]]:
        config = parse(RunConfig, settings)
        planned = trained = ""
        remarks: list[str] = []
        try:
            show_plan(config, {})
        except SettingError as error:
            planned = str(error).removeprefix(REFUSED)
        shown = re.sub(r"\n {8,}(?=\S)", " ", capsys.readouterr().out)  # wrapped lines
        notes = sorted(re.findall(r"^  note  +(.*)$", shown, re.M))
        try:
            remarks = sorted(train(config).results.get("data", []))
        except SettingError as error:
            trained = str(error)
        assert planned == trained
        if not trained:
            assert notes == remarks
            spoken = capsys.readouterr().err
            write_report(Path(config.folder))
            report = (Path(config.folder) / "report.md").read_text()
            assert all(one in spoken and f"- {one}" in report for one in remarks)
        return trained, remarks

    work.compared = compared  # type: ignore[attr-defined]
    return work


@pytest.mark.parametrize(
    ("format", "record", "reason"),
    [
        ("document", {"text": 3}, "line 13: 'text' is a number, not text"),
        ("document", '{"text": "good", "text": "bad"}', "line 13: it has the key 'text' twice"),
        ("chat", '{"messages": [{"role": "user", "role": "assistant"}]}', "key 'role' twice"),
        ("chat", turns("q", 3), "line 13: messages[1].content: only text can be read"),
        ("chat", turns("q", "a", weight=0.5), "line 13: messages[1].weight: 0.5 is not 0 or 1"),
        ("chat", {"messages": []}, "line 13: no dialogue in it"),
        ("chat", turns("q", "a", loss_mask=[0, 1]), "messages[1].loss_mask: [0, 1] is not 0 or 1"),
        ("chat", turns("q", "a", mask=1), "messages[1]: it is not clear what 'mask' says"),
        ("chat", turns("q", "a", trainable=False), "the weight of every answer is 0"),
        ("chat", {**pair("q", ""), "completion": "a", "label": False}, "its answer has a label"),
        ("chat", {**turns("q", "a"), "label": 1}, "its answer has a label"),
        ("prompt", {"prompt": "q", "answer": "a", "label": True}, "its answer has a label"),
        ("pair", pair("q", 3), "line 13: no answer in 'chosen'"),
        ("pair", pair(3, "a"), "line 13: no question in 'prompt'"),
    ],
)
def test_records_that_both_refuse_or_skip(
    format: str, record: Any, reason: str, both: Plan
) -> None:
    good = GOOD[format]
    said, _ = both(format, lines(*good, record))
    assert reason in said
    assert said.endswith("; correct it, or set data.invalid=skip to leave it out")
    said, remarks = both(format, lines(*good, record), "y.jsonl", invalid="skip", held_out=0)
    assert (said, remarks) == ("", ["1 records cannot be read and are left out."])


@pytest.mark.parametrize(
    ("format", "record", "remark"),
    [
        ("document", {"text": " "}, "1 records hold no text and are left out."),
        ("chat", turns("q", ""), "1 dialogues have an empty answer."),
        ("chat", turns("q", None), "1 dialogues have an empty answer."),
        ("chat", {"messages": [{**U, "weight": 1}, A]}, "1 messages have the key 'weight'"),
        ("chat", {"messages": [{**U, "loss": True}, A]}, "1 messages have the key 'loss'"),
        ("chat", turns(LONG, "a"), "1 of 13 documents have no learned token within 64"),
        ("chat", turns("q", LONG), "1 documents are longer than 64 tokens and are truncated."),
        ("chat", CHATS[0], "1 records are duplicates and dropped"),
        ("chat", {**SHARED[0], "id": "x"}, "1 records have the key 'id', which is not used."),
        ("chat", {**ALPACA[0], "input": ["x"]}, "1 records have the key 'input'"),
        ("pair", pair("q", "a", "a"), "1 pairs have the same chosen and rejected answer"),
        ("pair", pair(LONG, "a"), "1 of 13 pairs have no learned token within 64 tokens"),
        ("pair", pair("q", ""), "1 dialogues have an empty answer."),
    ],
)
def test_what_both_count(format: str, record: Any, remark: str, both: Plan) -> None:
    good = GOOD[format]
    said, remarks = both(format, lines(*good, record), held_out=0)
    assert said == ""
    assert any(one.startswith(remark) for one in remarks), remarks


ZSTD, XZ = b"\x28\xb5\x2f\xfd", b"\xfd7zXZ"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("x.jsonl", "", "nothing to read: 1 files in .* are empty"),
        ("x.jsonl", "\n \n", "nothing to read: it holds no document"),
        ("x.jsonl", lines(*DOCUMENTS).encode("utf-16"), "UTF-16 text; save it as UTF-8"),
        ("x.txt", "text".encode("utf-16"), "UTF-16 text; save it as UTF-8"),
        ("x.txt", "text".encode("utf-16-le"), "not text: it contains zero bytes"),
        ("x.jsonl", lines(*DOCUMENTS).encode("utf-16-le"), "not text: it contains zero bytes"),
        ("x.jsonl.zst", ZSTD + b"abc", "cannot be read: the compressed data is truncated"),
        ("x.txt", XZ + b"abc", "compressed with xz; decompress it, or use gzip"),
        ("x.txt", gzip.compress(b"text", mtime=0), "compressed with gzip; end its name in .gz"),
        ("x.jsonl", gzip.compress(b"text", mtime=0), "compressed with gzip; end its name in .gz"),
        ("x.jsonl.gz", b"text", "cannot be read: Not a gzipped file"),
        ("x.json", '[{"text": "a"},', "correct it, or leave the file out"),
        ("x.json", '[{"text": "a", "text": "b"}]', "an object has the key 'text' twice"),
        ("x.jsonl", lines(DOCUMENTS[0]), "one document cannot be divided"),
    ],
)
def test_files_that_both_refuse(name: str, content: Any, reason: str, both: Plan) -> None:
    said, _ = both("document", content, name)
    assert re.search(reason, said), said


@pytest.mark.parametrize("name", ["x.jsonl", "x.JSONL", "x.jsonl.GZ"])
def test_files_that_both_read(name: str, both: Plan) -> None:
    content = ("\ufeff" + lines(*DOCUMENTS).replace("\n", "\r\n")).encode()
    content = gzip.compress(content) if name.endswith("GZ") else content
    assert both("document", content, name, held_out=0) == ("", [])


def test_empty_and_other_files_of_a_folder_are_counted(
    both: Any, stage: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, content in (("a.jsonl", lines(*DOCUMENTS)), ("b.txt", ""), ("c.doc", "x")):
        (folder / name).write_text(content)
    data = {"path": str(folder), "held_out": 0}
    settings = {**stage("sft", steps=1), "folder": str(tmp_path / "run"), "data": data}
    said, remarks = both.compared(settings)
    assert said == ""
    assert remarks[0] == f"1 files in {folder} are empty."
    assert remarks[1].startswith(f"1 files in {folder} are not read (.doc)")


@pytest.mark.parametrize("format", ["chat", "pair"])
def test_held_out_rows_that_teach_nothing(format: str, both: Plan) -> None:
    """Whichever record is held out is too long for the context."""
    good, seen = {"chat": CHATS, "pair": PAIRS}[format], []
    for number in range(6):
        long = [turns(f"{number}{n}{LONG}", "a") for n in range(3)]
        if format == "pair":
            long = [pair(f"{number}{n}{LONG}", "a") for n in range(3)]
        seen.append(both(format, lines(*long, *good[number : number + 3]), f"{number}.jsonl")[0])
    assert any("no token of the split 'held_out' would be learned" in one for one in seen)
    assert any(one == "" for one in seen)


@pytest.mark.parametrize(
    ("records", "reason", "remark"),
    [
        ([{"prompt": "q", "answer": ["a"]}], "line 41: no text or number in 'answer'", ""),
        (
            [{"prompt": "q", "answer": True}],
            r"answer \(true or false\)",
            "",
        ),
        (['{"prompt": "q", "answer": NaN}'], r"answer \(a number that is not finite\)", ""),
        (['{"prompt": "q", "answer": 1e999}'], r"answer \(a number that is not finite\)", ""),
        (["{"], "line 41: not readable as JSON: .* at column 2; correct it", ""),
        ([{"prompt": "q", "answer": " "}], "", "1 records have an empty prompt or answer"),
        ([{"prompt": "", "answer": "a"}], "", "1 records have an empty prompt or answer"),
        (
            [{"prompt": "new", "answer": "a", "level": 3}],
            "",
            r"1 records have the key 'level', which (is not used|only a reward function reads)\.",
        ),
        ([{"prompt": f"1{LONG}", "answer": "a"}], "", r"\d+ of the first 200 questions leave no"),
    ],
)
def test_questions(
    records: list[Any], reason: str, remark: str, both: Any,
    stage: Callable[..., dict[str, Any]], tmp_path: Path,
) -> None:  # fmt: skip
    """Of on-policy training, where data.invalid has no say; and of fine-tuning on the same file."""
    path = tmp_path / "asked.jsonl"
    path.write_text(lines(*ASKED, *records))
    settings = {**stage("grpo", steps=1), "folder": str(tmp_path / "run")}
    settings["data"] = {"tasks": [{"kind": "prompts", "path": str(path)}]}
    said, remarks = both.compared(settings)
    assert re.search(reason, said) if reason else not said
    assert "data.invalid" not in said
    assert [bool(re.match(remark, one)) for one in remarks] == [True] * bool(remark)
    tuned = {**stage("sft", steps=1), "folder": str(tmp_path / "tuned")}
    tuned["data"] = {"path": str(path), "format": "prompt", "held_out": 0}
    said, remarks = both.compared(tuned)
    assert re.search(reason, said) if reason else not said
    if "questions" not in remark:
        assert [bool(re.match(remark, one)) for one in remarks] == [True] * bool(remark)


def test_nothing_but_questions_that_are_too_long(
    both: Any, stage: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "asked.jsonl"
    path.write_text(lines(*({"prompt": f"{n}{LONG}", "answer": "a"} for n in range(30))))
    settings = {**stage("grpo", steps=1), "folder": str(tmp_path / "run")}
    settings["data"] = {"tasks": [{"kind": "prompts", "path": str(path)}]}
    said, _ = both.compared(settings)
    assert said.startswith("data.tasks: 1000 questions in a row leave no room for an answer")


def test_a_column_that_a_file_has_twice(both: Plan, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = [pyarrow.array(["good", "text"]), pyarrow.array(["bad", "words"])]
    table = pyarrow.Table.from_arrays(columns, names=["text", "text"])
    parquet.write_table(table, tmp_path / "made.parquet")
    said, _ = both("document", (tmp_path / "made.parquet").read_bytes(), "x.parquet")
    assert said.endswith("x.parquet: it has the column 'text' twice; rename one of them")
