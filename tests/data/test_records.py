"""Whatever a record brings is used, refused or counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from culm.config import SettingError, parse
from culm.data.example import RecordFormat, bytes_of
from culm.data.format.chat import ChatFormat
from culm.data.format.document import DocumentFormat
from culm.data.format.label import LabelFormat
from culm.data.format.pair import PairFormat
from culm.data.format.prompt import PromptFormat
from culm.data.format.ranking import RankingFormat
from culm.data.format.steps import StepsFormat
from culm.data.loader import Loader
from culm.data.manifest import Manifest
from culm.data.prepare import prepare
from culm.data.prepared import Prepared
from culm.data.settings import DataConfig
from culm.data.texts import texts_of
from culm.eval.report import write_report
from culm.run.settings import RunConfig
from culm.run.train import train
from culm.source import open_source
from culm.source.record import Record, fields_of
from culm.tokenizer.tokenizer import Tokenizer

U, A = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}


@pytest.fixture
def prepared(tmp_path: Path, tokenizer: Tokenizer) -> Callable[..., tuple[Manifest, list[str]]]:
    """A file of lines, prepared: its manifest, and the texts of its documents."""

    def work(lines: list[Any], format: RecordFormat, **options: Any) -> tuple[Manifest, list[str]]:
        made = len(list(tmp_path.glob("data*")))
        path, folder = tmp_path / "records.jsonl", tmp_path / f"data{made}"
        path.write_text(
            "\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines)
        )
        source = open_source(path, invalid=options.get("invalid", "error"))
        manifest = prepare(source, format, tokenizer, folder, held_out=0, **options)
        opened = Prepared.open(folder)
        ends = zip(opened.offsets, opened.offsets[1:], strict=False)
        documents = [opened.read(start, end) for start, end in ends]
        return manifest, [tokenizer.decode(ids.tolist(), specials=True) for ids, _ in documents]

    return work


def test_calls_and_tools_are_written(prepared: Any) -> None:
    call = {"type": "function", "function": {"name": "sum", "arguments": '{"of": [1, 2]}'}}
    turn = {"role": "assistant", "content": None, "tool_calls": [call]}
    record = {
        "messages": [U, turn, {"role": "tool", "content": "3"}, A],
        "tools": [{"name": "sum"}],
    }
    for tools in (record["tools"], json.dumps(record["tools"])):
        _, [text] = prepared([{**record, "tools": tools}], ChatFormat())
        assert text == (
            '<|system|><tool>{"name": "sum"}</tool><|end|><|user|>Hi<|end|><|assistant|>'
            '<tool_call>{"name": "sum", "arguments": {"of": [1, 2]}}</tool_call><|end|>'
            "<|tool|>3<|end|><|assistant|>Yes<|end|>"
        )
    with pytest.raises(SettingError, match=r"line 1: tools: not a list, but a number; correct it"):
        prepared([{**record, "tools": 3}], ChatFormat())


def test_names_of_roles(prepared: Any) -> None:
    for asked, answered in (("Human", "AI"), ("User", "Assistant"), ("human", "model")):
        turns = [{"role": asked, "content": "Hi"}, {"role": answered, "content": "Yes"}]
        _, [text] = prepared([{"messages": turns}], ChatFormat())
        assert text == "<|user|>Hi<|end|><|assistant|>Yes<|end|>"


def test_calls_of_sharegpt_are_learned(prepared: Any) -> None:
    call = {"name": "weather", "arguments": {"town": "Rome"}}
    for value in (json.dumps(call), json.dumps([call])):
        turns = [("human", "Hi"), ("function_call", value), ("observation", "4"), ("gpt", "Yes")]
        record = {"conversations": [{"from": role, "value": text} for role, text in turns]}
        _, [text] = prepared([record], ChatFormat())
        assert text == (
            '<|user|>Hi<|end|><|assistant|><tool_call>{"name": "weather", "arguments": '
            '{"town": "Rome"}}</tool_call><|end|><|tool|>4<|end|><|assistant|>Yes<|end|>'
        )
    record["conversations"][1]["value"] = "weather(Rome)"
    with pytest.raises(SettingError, match="line 1: a message of the role 'function_call' is not"):
        prepared([record], ChatFormat())


def test_unusual_messages_are_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    said = [{"role": "critic", "content": [{"type": "text", "text": "Hm <|endoftext|>"}]}, U, A]
    text = json.dumps({"messages": said})
    (tmp_path / "x.jsonl").write_text(text)
    template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    template += "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    other = Tokenizer(tokenizers.Tokenizer.from_str(tokenizer.json), {}, template)
    source = open_source(tmp_path / "x.jsonl")
    manifest = prepare(source, ChatFormat(), other, tmp_path / "out", held_out=0)
    assert manifest.notes == {
        "messages have the role 'critic', which is read and not learned": 1,
        "dialogues contain <|endoftext|> as text, and not as the special token": 1,
    }


def test_reasoning_that_a_template_leaves_out_is_counted(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    template = """\
{%- for m in messages -%}{{- '<|' ~ m.role ~ '|>' -}}
{%- if m.reasoning_content and loop.last -%}{{- '<think>' ~ m.reasoning_content ~ '</think>' -}}
{%- endif -%}{{- (m.content if loop.last else m.content.split('</think>')[-1]) ~ '<|end|>' -}}
{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"""
    other = Tokenizer(tokenizers.Tokenizer.from_str(tokenizer.json), {}, template)
    forms = [{**A, "reasoning_content": "Hm"}, {**A, "content": "<think>Hm</think>Yes"}]
    phrase = "dialogues have answers whose reasoning the chat template leaves out"
    for answer in forms:
        for turns, lost in (([U, answer], False), ([U, answer, U, answer], True)):
            encoded = other.chat.encode(turns)
            assert [one.startswith(phrase) for one in encoded.remarks] == [True] * lost
            assert not other.chat.encode(turns, "last").remarks
    (tmp_path / "x.jsonl").write_text(json.dumps({"messages": turns}))
    source = open_source(tmp_path / "x.jsonl")
    manifest = prepare(source, ChatFormat(), other, tmp_path / "out", held_out=0)
    assert list(manifest.notes.values()) == [1]


def test_parts_of_a_content(prepared: Any) -> None:
    def with_parts(*parts: dict[str, Any]) -> dict[str, Any]:
        return {"messages": [U, {"role": "assistant", "content": list(parts)}]}

    plain, more = {"type": "text", "text": "Y"}, {"text": "es", "cache_control": {"type": "x"}}
    manifest, [text] = prepared([with_parts(plain, more)], ChatFormat())
    assert text == "<|user|>Hi<|end|><|assistant|>Yes<|end|>"
    key = "messages have the key 'content[].cache_control', which the chat template does not use"
    assert manifest.notes == {key: 1}
    for kind in ("image", "thinking", "reasoning"):
        with pytest.raises(SettingError, match="content: only text can be read"):
            prepared([with_parts({"type": kind, "text": "", kind: "x"}, plain)], ChatFormat())
    for key in ("weight", "train", "loss_mask"):
        with pytest.raises(SettingError, match=rf"content: a part with '{key}' is not learned or"):
            prepared([with_parts({**plain, key: 0}, more)], ChatFormat())


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_absent_fields_of_a_table_are_not_null(tmp_path: Path, kind: str) -> None:
    """An object in a table has the fields of all objects in its column."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    def record(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        call = {"function": {"name": name, "arguments": arguments}}
        tool = {"name": name, "parameters": {key: {"type": "string"} for key in arguments}}
        return {"messages": [U, {"role": "assistant", "tool_calls": [call]}], "tools": [tool]}

    records, path = [record("weather", {"town": "Rome"}), record("sum", {"a": 1})], tmp_path / "x"
    path = path.with_suffix(f".{kind}")
    if kind == "parquet":
        parquet.write_table(arrow.Table.from_pylist(records), path)
    else:
        path.write_text("\n".join(map(json.dumps, records)))
    for wanted, read in zip(records, open_source(path), strict=True):
        [dialogue] = ChatFormat().contents(read)
        calls = dialogue.messages[1]["tool_calls"]
        assert (calls, dialogue.tools) == (wanted["messages"][1]["tool_calls"], wanted["tools"])


def test_keys_that_nothing_reads_are_counted(prepared: Any) -> None:
    turn = {**A, "tool_calls": [], "score": 3}
    lines = [{"messages": [U, turn], "source": "web", "n": n} for n in range(3)]
    manifest, _ = prepared([*lines, {"messages": [U, A]}], ChatFormat())
    assert manifest.notes == {
        "records have the key 'n', which is not used": 3,
        "records have the key 'source', which is not used": 3,
        "messages have the key 'score', which the chat template does not use": 1,
    }
    assert manifest.dropped == 2
    assert len(manifest.remarks) == 4


def test_alpacas_history_is_in_the_dialogue(prepared: Any) -> None:
    record = {"instruction": "And 1?", "input": "", "output": "8", "history": [["7.", "Fine."]]}
    _, [text] = prepared([record], ChatFormat())
    assert text == (
        "<|user|>7.<|end|><|assistant|>Fine.<|end|><|user|>And 1?<|end|><|assistant|>8<|end|>"
    )
    manifest, _ = prepared([{**record, "history": "other"}], ChatFormat())
    assert "records have the key 'history', which is not used" in manifest.notes


PIRATE = {"system": "Pirate.", "chosen": [U, A], "rejected": [U, {**A, "content": "No"}]}
TURNS = {
    "prompt": [U],
    "chosen": [A, {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ann"}],
    "rejected": [A, {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "?"}],
}
WHOLE = {"prompt": "Hi ", "chosen": [U, A], "rejected": [U, {**A, "content": "No"}]}
STACK = {"question": "Hi", "response_j": "Yes", "response_k": "No"}


@pytest.mark.parametrize(
    ("record", "wanted"),
    [
        (PIRATE, "<|system|>Pirate.<|end|><|user|>Hi<|end|><|assistant|>Yes<|end|>"),
        (
            TURNS,
            "<|user|>Hi<|end|><|assistant|>Yes<|end|><|user|>Who?<|end|><|assistant|>Ann<|end|>",
        ),
        (WHOLE, "<|user|>Hi<|end|><|assistant|>Yes<|end|>"),
        (STACK, "<|user|>Hi<|end|><|assistant|>Yes<|end|>"),
    ],
)
def test_pairs_keep_what_stands_before(prepared: Any, record: Any, wanted: str) -> None:
    manifest, [text, _] = prepared([record], PairFormat())
    assert text == wanted
    assert not manifest.notes


def test_dialogues_that_begin_with_an_answer_are_counted(prepared: Any) -> None:
    phrase = "dialogues begin with the assistant, so its first answer is to no question"
    system = {"role": "system", "content": "Be brief."}
    lines = [{"messages": turns} for turns in ([A, U, A], [U, A], [system, A], [system, U, A])]
    manifest, texts = prepared(lines, ChatFormat())
    assert len(texts) == 4
    assert manifest.notes == {phrase: 2}
    pair = {"chosen": [A, U, A], "rejected": [A, U, {**A, "content": "No"}]}
    manifest, _ = prepared([pair], PairFormat())
    assert manifest.notes == {phrase: 2}


def test_bytes_are_those_of_the_text(prepared: Any, tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Whatever a tokenizer adds, such as a space before each text."""
    lines = [{"text": "wärm 東京"}, {"text": "<|end|> a"}]
    spaced = tokenizers.Tokenizer.from_str(tokenizer.json)
    spaced.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    for number, each in enumerate((tokenizer, Tokenizer(spaced, tokenizer.settings))):
        (tmp_path / "text.jsonl").write_text("\n".join(map(json.dumps, lines)))
        source = open_source(tmp_path / "text.jsonl")
        manifest = prepare(source, DocumentFormat(), each, tmp_path / f"p{number}", held_out=0)
        assert manifest.bytes == sum(len(line["text"].encode()) for line in lines)
    manifest, _ = prepared([{"messages": [U, {**A, "content": "東京"}]}], ChatFormat())
    assert manifest.bytes == len("Hi東京".encode())


def test_pairs_that_compare_nothing_are_left_out(prepared: Any) -> None:
    same = {"prompt": "q", "chosen": "a", "rejected": "a"}
    other = {"chosen": [U, A], "rejected": [{**U, "content": "Ho"}, A]}
    manifest, texts = prepared([same, other, same | {"rejected": "b"}], PairFormat())
    assert len(texts) == 2
    assert manifest.notes == {
        "pairs have the same chosen and rejected answer and are left out": 1,
        "pairs have answers to different questions and are left out": 1,
    }


def test_pairs_without_room_are_counted(tmp_path: Path, prepared: Any) -> None:
    lines = [
        {"prompt": "w" * (90 if n % 2 else 1) + str(n), "chosen": "y", "rejected": "n"}
        for n in range(10)
    ]
    prepared(lines, PairFormat())
    rows = Loader(Prepared.open(tmp_path / "data0"), 64, 1, 1, seed=0)
    assert rows.remarks == [
        "5 of 10 pairs have no learned token within 64 tokens and are left out."
    ]


BAD = ['{"text": 3}', '{"text": "good"}', "{broken", '{"body": "x"}', "[1]"]


DEEP = '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}"


def test_records_that_cannot_be_read_are_named_or_counted(prepared: Any, tmp_path: Path) -> None:
    wrong = r"records\.jsonl: line 1: 'text' is a number, not text; .*data\.invalid=skip"
    with pytest.raises(SettingError, match=wrong):
        prepared(BAD, DocumentFormat())
    path = tmp_path / "new.jsonl"
    path.write_text(BAD[0])
    with pytest.raises(SettingError, match=wrong.replace("records", "new")):
        list(texts_of(open_source(path), DocumentFormat()))
    with pytest.raises(SettingError, match=r"line 3: not readable as JSON: .*data\.invalid=skip"):
        prepared(BAD[1:2] * 2 + BAD[2:], DocumentFormat())
    manifest, [text] = prepared(BAD, DocumentFormat(), invalid="skip")
    assert text == "good<|endoftext|>"
    assert manifest.notes["records cannot be read and are left out"] == 4
    dialogues = [{"messages": [U, A]}, {"messages": [A, {"role": "robot", "content": ""}]}]
    manifest, texts = prepared(dialogues, ChatFormat(), invalid="skip")
    assert len(texts) == manifest.notes["records cannot be read and are left out"] == 1


def test_json_that_is_nested_too_deeply(prepared: Any) -> None:
    with pytest.raises(SettingError, match="line 2: not readable as JSON: maximum recursion depth"):
        prepared([BAD[1], DEEP], DocumentFormat())
    manifest, _ = prepared([BAD[1], DEEP], DocumentFormat(), invalid="skip")
    assert manifest.notes["records cannot be read and are left out"] == 1


def test_a_line_may_be_a_list_of_messages(tmp_path: Path, prepared: Any) -> None:
    _, texts = prepared([[U, A], [{**U, "content": "Ho"}, A]], ChatFormat())
    assert sorted(texts)[0] == "<|user|>Hi<|end|><|assistant|>Yes<|end|>"
    for content in ([U, A], [[U, A]], [{"messages": [U, A]}]):
        for indent in (None, 1):
            path = tmp_path / "a.json"
            path.write_text(json.dumps(content, indent=indent))
            assert list(open_source(path)) == [{"messages": [U, A]}]


def test_equal_records_can_be_kept(prepared: Any) -> None:
    lines = [{"text": "a"}] * 3 + [{"text": "b"}]
    manifest, texts = prepared(lines, DocumentFormat())
    assert (len(texts), manifest.dropped) == (2, 2)
    assert manifest.remarks == [
        "2 records are duplicates and dropped; data.duplicates=keep keeps them."
    ]
    manifest, texts = prepared(lines, DocumentFormat(), duplicates="keep")
    assert (len(texts), manifest.dropped) == (4, 0)


def test_marks_between_documents(tmp_path: Path, prepared: Any) -> None:
    stories = [f"Story {n}.\n\nIt ends." for n in range(30)]
    text = "\n<|endoftext|>\n".join(stories)
    path = tmp_path / "stories.txt"
    path.write_text(text)
    data = parse(DataConfig, {"path": str(path), "separator": "<|endoftext|>"})
    assert [record["text"] for record in data.open()] == stories
    manifest, _ = prepared([{"text": text}], DocumentFormat())
    [remark] = manifest.remarks
    assert remark.startswith("1 documents contain <|endoftext|> as text; data.separator=")


def test_files_that_are_not_read_are_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in ("a.txt", "b.docx", "c.png", "d.xml", "e.docx"):
        (folder / name).write_text(f"text of {name}")
    manifest = prepare(open_source(folder), DocumentFormat(), tokenizer, tmp_path / "d", held_out=0)
    [(phrase, count)] = manifest.notes.items()
    assert count == 4
    assert "(.docx, .png, .xml)" in phrase
    for start in (b"%PDF-1.7\n", b"PK\x03\x04"):
        (folder / "a.txt").write_bytes(start + b"some text")
        with pytest.raises(SettingError, match="not text but a document of another program"):
            list(open_source(folder / "a.txt", invalid="replace"))


def test_the_share_that_is_held_out_is_reported(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Of three short documents one is held out; of three long ones a part is."""
    for folder, words, wanted in (("short", 900, True), ("long", 90_000, False)):
        (tmp_path / folder).mkdir()
        for n in range(3):
            (tmp_path / folder / f"{n}.txt").write_text("words " * (words + n))
        source = open_source(tmp_path / folder)
        out = tmp_path / f"{folder}-data"
        manifest = prepare(source, DocumentFormat(), tokenizer, out, held_out=0.02)
        said = "% of the bytes are held out, by data.held_out=0.02"
        assert any(said in remark for remark in manifest.remarks) == wanted
        assert manifest.held_out_share == pytest.approx(1 / 3 if wanted else 0.02, abs=0.003)


def test_text_that_changed_since_it_was_prepared(tmp_path: Path, tokenizer: Tokenizer) -> None:
    for name in ("a.txt", "b.txt", "c.txt"):
        (tmp_path / name).write_text(f"text of {name}")
    source = open_source([tmp_path / name for name in ("a.txt", "b.txt", "c.txt")])
    prepare(source, DocumentFormat(), tokenizer, tmp_path / "data", held_out=0)
    rows = Loader(Prepared.open(tmp_path / "data"), 16, 1, 1, seed=0)
    assert rows.remarks == []
    (tmp_path / "a.txt").unlink()  # it is not needed any more
    assert rows.remarks == []
    (tmp_path / "b.txt").write_text("other text")
    (tmp_path / "c.txt").write_text("text of d.txt")
    [remark] = rows.remarks
    assert remark == (
        f"{tmp_path / 'data'} was prepared from other text: {tmp_path / 'b.txt'} had 13 bytes then "
        "and has 10 now, and 1 other files changed."
    )


def test_a_record_knows_what_was_read() -> None:
    record = Record({"a": 1, "b": 2, "c": None, "d": [3]}, "x: line 1")
    assert record["a"] == 1
    assert record.unread == {"b", "d"}
    assert fields_of(record) == {"a": 1, "b": 2, "c": None, "d": [3]}
    assert record.unread == {"b", "d"}
    assert record.get("b") == 2
    assert "d" in record
    assert not record.unread


def test_a_run_says_what_it_left_out(
    stage: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = tmp_path / "chat.jsonl", tmp_path / "run"
    lines = [{"messages": [{**U, "content": f"Hi {n}"}, A], "id": n + 1} for n in range(20)]
    path.write_text("\n".join(map(json.dumps, [*lines, lines[0], {"nothing": 1}])))
    settings = {**stage("sft", steps=2), "folder": str(folder)}
    settings["data"] = {"path": str(path), "format": "chat", "held_out": 0, "invalid": "skip"}
    results = train(parse(RunConfig, settings)).results
    wanted = [
        "1 records cannot be read and are left out.",
        "21 records have the key 'id', which is not used.",
        "1 records are duplicates and dropped; data.duplicates=keep keeps them.",
    ]
    assert sorted(results["data"]) == sorted(wanted)
    spoken = capsys.readouterr().err
    assert all(remark in spoken for remark in wanted)
    write_report(folder)
    assert all(f"- {remark}" in (folder / "report.md").read_text() for remark in wanted)


ODD_KEYS = ["role", "content", "from", "value", "text"]
PLAIN = st.sampled_from(
    [None, True, 0, 1.5, float("nan"), "", "user", "assistant", "\ud800", "[1]"]
)
MESSAGE = st.dictionaries(st.sampled_from(ODD_KEYS), PLAIN | st.lists(PLAIN, max_size=2))
ODD = PLAIN | st.lists(MESSAGE | PLAIN, max_size=3) | MESSAGE
FIELDS = (
    "messages", "conversations", "prompt", "completion", "instruction", "input", "output", "system",
    "tools", "history", "chosen", "rejected", "margin", "label", "text", "question", "answer",
    "completions", "scores", "ranks", "labels", "rating",
)  # fmt: skip
FORMATS = [
    ChatFormat(), PairFormat(), PairFormat(margin="margin"), LabelFormat(), PromptFormat(),
    DocumentFormat(), RankingFormat(), StepsFormat(),
]  # fmt: skip


@pytest.mark.parametrize("format", FORMATS, ids=lambda one: one.kind)
@given(record=st.dictionaries(st.sampled_from(FIELDS), ODD, max_size=5))
def test_a_value_of_a_wrong_type_is_a_plain_error(
    format: RecordFormat, record: dict[str, Any]
) -> None:
    one = Record(record, "here")
    with suppress(ValueError):
        format.numbers(one)
        assert sum(map(bytes_of, format.contents(one))) >= 0


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"messages": [{"role": ["user"], "content": "Hi"}, A]}, "role of a message is a list"),
        ({"messages": [U, {"role": {}, "content": "Yes"}]}, "role of a message is an object"),
        ({"messages": [U, {"from": 3, "value": "Yes"}]}, "role of a message is a number"),
        ({"messages": [], "system": "Be kind."}, "no assistant turn"),
    ],
)
def test_a_wrong_type_in_a_message_is_skipped_or_refused(
    prepared: Any, record: dict[str, Any], problem: str
) -> None:
    with pytest.raises(SettingError, match=f"line 1: .*{problem}"):
        prepared([record], ChatFormat())
    manifest, _ = prepared([record, {"messages": [U, A]}], ChatFormat(), invalid="skip")
    assert manifest.notes == {"records cannot be read and are left out": 1}


@pytest.mark.parametrize("answer", [{"role": "assistant"}, {"role": "assistant", "content": 5}, []])
def test_an_answer_without_text_is_a_plain_error(prepared: Any, answer: Any) -> None:
    with pytest.raises(SettingError, match=r"line 1: (no question|no answer|content)"):
        prepared([{"chosen": answer, "rejected": "no"}], PairFormat())


@pytest.mark.parametrize(
    ("record", "key"),
    [
        ({"messages": [{"role": "system", "content": "A"}, U, A], "system": "B"}, "system"),
        ({"messages": [U, A], "system": ["B"]}, "system"),
        ({"instruction": "Add.", "input": ["1", "2"], "output": "3"}, "input"),
        ({"instruction": ["Add."], "prompt": "1 + 2?", "completion": "3"}, "instruction"),
        ({"messages": "[]", "prompt": "1 + 2?", "completion": "3"}, "messages"),
        ({"prompt": "1 + 2?", "output": 3, "completion": "three"}, "output"),
    ],
)
def test_a_field_of_another_type_or_meaning_is_counted(
    prepared: Any, record: dict[str, Any], key: str
) -> None:
    manifest, _ = prepared([record], ChatFormat())
    assert manifest.notes == {f"records have the key {key!r}, which is not used": 1}


def test_a_system_text_that_the_messages_repeat_is_used(prepared: Any) -> None:
    record = {"messages": [{"role": "system", "content": "A"}, U, A], "system": "A"}
    assert prepared([record], ChatFormat())[0].notes == {}


NOT_LEARNED = [
    {"weight": 0}, {"train": False}, {"training": False}, {"trainable": False}, {"loss": False},
    {"loss_mask": 0}, {"loss_weight": 0.0}, {"loss_scale": 0}, {"masked": True},
]  # fmt: skip


@pytest.mark.parametrize("off", NOT_LEARNED)
def test_the_weights_of_other_tools(off: Any, tokenizer: Tokenizer) -> None:
    [(key, value)] = off.items()
    for weighted, learned in ((off, "Yes<|end|>"), ({key: not value}, "Yes<|end|>Yes<|end|>")):
        record = {"messages": [U, {**A, **weighted}, {**U, **off}, A]}
        [example] = ChatFormat().encode(list(ChatFormat().contents(record)), tokenizer)
        pairs = zip(example.tokens, example.learned, strict=True)
        said = tokenizer.decode([id for id, wanted in pairs if wanted], specials=True)
        assert said == learned
        assert not example.unread


def test_weights_that_contradict_each_other_are_refused(prepared: Any) -> None:
    with pytest.raises(SettingError, match="weight 1 and train False contradict each other"):
        prepared([{"messages": [U, {**A, "weight": 1, "train": False}]}], ChatFormat())


@pytest.mark.parametrize("weight", [{"train": True}, {"weight": 1}])
def test_a_weight_of_a_message_that_is_not_learned_is_counted(prepared: Any, weight: Any) -> None:
    (key,) = weight
    manifest, _ = prepared([{"messages": [{**U, **weight}, A]}], ChatFormat())
    assert manifest.notes == {
        f"messages have the key {key!r}, which the chat template does not use": 1
    }
    off = dict.fromkeys(weight, 0)
    assert prepared([{"messages": [{**U, **off}, A]}], ChatFormat())[0].notes == {}


def test_a_record_that_is_nested_too_deeply(prepared: Any) -> None:
    deep: Any = "x"
    for _ in range(800):
        deep = {"a": deep}
    call = {"function": {"name": "f", "arguments": deep}}
    record = {"messages": [U, A, {"role": "assistant", "content": "", "tool_calls": [call]}]}
    with pytest.raises(SettingError, match=r"line 2: nested too deeply"):
        prepared([{"messages": [U, A]}, record], ChatFormat())


@pytest.mark.parametrize("margin", ["1e39", "-1e400", "NaN", f"1{'0' * 400}", '"1"'])
def test_a_number_that_fp32_cannot_hold(margin: str, prepared: Any) -> None:
    line = '{"prompt": "q", "chosen": "a", "rejected": "b", "margin": %s}'
    format = PairFormat(margin="margin")
    with pytest.raises(SettingError, match=r"line 2: .*'margin'"):
        prepared([line % 1, line % margin], format)
    manifest, _ = prepared([line % 1, line % margin], format, invalid="skip")
    assert manifest.notes == {"records cannot be read and are left out": 1}


@pytest.mark.parametrize("format", [ChatFormat(), PairFormat(), LabelFormat(), PromptFormat()])
def test_a_tokenizer_without_a_chat_template_is_no_fault_of_a_record(
    format: RecordFormat, prepared: Any, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    bare = Tokenizer(tokenizers.Tokenizer.from_str(tokenizer.json), tokenizer.settings, None)
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "q", "completion": "a"}))
    source = open_source(tmp_path / "a.jsonl")
    for invalid in ("error", "skip"):
        with pytest.raises(SettingError, match=r"no chat template.* start\.chat=true") as raised:
            prepare(source, format, bare, tmp_path / "d", held_out=0, invalid=invalid)  # type: ignore[arg-type]
        assert "data.invalid" not in str(raised.value)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    "calls",
    [
        "f()",
        {"function": {"name": "f", "arguments": {}}},
        [None],
        ["f()"],
        [{"type": "function", "function": {"arguments": {}}}],
        [{"name": 3, "arguments": {}}],
        [{"function": {"name": "f"}}],
        [{"function": "f", "arguments": {}}],
    ],
)
def test_calls_that_a_template_would_write_wrongly(calls: Any, prepared: Any) -> None:
    record = {"messages": [U, {"role": "assistant", "content": "", "tool_calls": calls}]}
    with pytest.raises(SettingError, match=r"messages\[1\]\.tool_calls: not a list of calls"):
        prepared([record], ChatFormat())


@pytest.mark.parametrize(
    "call", [{"name": "f", "arguments": "{}"}, {"function": {"name": "f", "arguments": {}}}]
)
def test_calls_without_arguments_of_either_form_are_written(call: Any, prepared: Any) -> None:
    record = {"messages": [U, {"role": "assistant", "content": None, "tool_calls": [call]}]}
    _, [text] = prepared([record], ChatFormat())
    assert '{"name": "f", "arguments": {}}' in text
