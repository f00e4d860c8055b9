"""Records that cannot be read are refused, or counted and left out."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from culm.config import SettingError
from culm.data.example import RecordFormat, bytes_of
from culm.data.format.chat import ChatFormat
from culm.data.format.document import DocumentFormat
from culm.data.format.label import LabelFormat
from culm.data.format.pair import PairFormat
from culm.data.format.prompt import PromptFormat
from culm.data.format.ranking import RankingFormat
from culm.data.format.steps import StepsFormat
from culm.data.prepare import prepare
from culm.data.texts import texts_of
from culm.source import open_source
from culm.source.record import Record
from culm.tokenizer.tokenizer import Tokenizer

U, A = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}
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
