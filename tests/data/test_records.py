"""Whatever a record brings is used, refused or counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import pre_tokenizers

from culm.config import SettingError
from culm.data.format.chat import ChatFormat
from culm.data.format.document import DocumentFormat
from culm.data.format.pair import PairFormat
from culm.data.loader import Loader
from culm.data.prepare import prepare
from culm.data.prepared import Prepared
from culm.source import open_source
from culm.tokenizer.tokenizer import Tokenizer

U, A = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}


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


def test_a_line_may_be_a_list_of_messages(tmp_path: Path, prepared: Any) -> None:
    _, texts = prepared([[U, A], [{**U, "content": "Ho"}, A]], ChatFormat())
    assert sorted(texts)[0] == "<|user|>Hi<|end|><|assistant|>Yes<|end|>"
    for content in ([U, A], [[U, A]], [{"messages": [U, A]}]):
        for indent in (None, 1):
            path = tmp_path / "a.json"
            path.write_text(json.dumps(content, indent=indent))
            assert list(open_source(path)) == [{"messages": [U, A]}]


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


@pytest.mark.parametrize(
    "call", [{"name": "f", "arguments": "{}"}, {"function": {"name": "f", "arguments": {}}}]
)
def test_calls_without_arguments_of_either_form_are_written(call: Any, prepared: Any) -> None:
    record = {"messages": [U, {"role": "assistant", "content": None, "tool_calls": [call]}]}
    _, [text] = prepared([record], ChatFormat())
    assert '{"name": "f", "arguments": {}}' in text
