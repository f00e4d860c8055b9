"""Parts of a message, from text in any pieces."""

import random

import pytest

from culm.text.message import MessageReader, joined
from culm.tools.text import CLOSE, OPEN

CALL = '<tool_call>\n{"name": "f", "arguments": {"t": "}</tool_call>\\""}}\n</tool_call>'
CASES = [
    ("<think>\nhm </thin\n</think>\n\nHi  there \n", {}, ("Hi  there \n", "hm </thin", [])),
    ("Hi <tool_call>x</tool_call>", {}, ("Hi <tool_call>x</tool_call>", "", [])),
    (
        f'I look. \n{CALL}\n<tool_call>{{"arguments": {{"a":1}}, "name": "b"}}</tool_call> done',
        {"calls": True},
        ("I look.done", "", [("f", '{"t": "}</tool_call>\\""}'), ("b", '{"a": 1}')]),
    ),
    ("why</think>ok", {"thinking": True}, ("ok", "why", [])),
    ("why not", {"thinking": True}, ("", "why not", [])),
    ("<tool_call>bad</tool_call> x", {"calls": True}, ("<tool_call>bad</tool_call> x", "", [])),
    ('<tool_call>{"name": "f", "arguments": {"t": ', {"calls": True}, ("", "", [("f", '{"t": ')])),
    (
        '<tool_call>{"name": "f", "arguments": {"t": [1</tool_call> so <tool_call>{"name": "g", '
        '"arguments": {}}</tool_call>',
        {"calls": True},
        ("so", "", [("f", '{"t": [1'), ("g", "{}")]),
    ),
    (
        '<tool_call>{"name": "f", "arguments": {}}\n<tool_call>{"name": "g", "arguments": {}} ok',
        {"calls": True},
        ("ok", "", [("f", "{}"), ("g", "{}")]),
    ),
    *(
        (text, {"calls": True}, (text, "", []))
        for text in (
            '<tool_call>{"name": "a\\q", "arguments": {}}</tool_call>',
            '<tool_call>{"name": "a\\ud800", "arguments": {}}</tool_call>',
            '<tool_call>{"name": "f", "parameters": {"x": NaN}}</tool_call>',
            "<tool_call>f(a={1})</tool_call>",
        )
    ),
    ("a <tool_ca", {"calls": True}, ("a <tool_ca", "", [])),
    ("", {}, ("", "", [])),
    ("  ", {}, ("  ", "", [])),
    ("<thi", {}, ("<thi", "", [])),
    ("<think></think>\n\nx", {"calls": True}, ("x", "", [])),
    ("x <think>y</think>", {}, ("x <think>y</think>", "", [])),
]


def read(pieces, **settings):
    reader = MessageReader(**settings)
    deltas = [delta for piece in pieces for delta in reader.read(piece)]
    deltas += reader.read("", last=True)
    calls: list[list[str]] = []
    for call in (delta.call for delta in deltas if delta.call):
        if call.name is not None:
            assert call.number == len(calls)
            calls.append([call.name, ""])
        calls[call.number][1] += call.arguments
    content = "".join(delta.content for delta in deltas)
    reasoning = "".join(delta.reasoning for delta in deltas)
    return content, reasoning, [tuple(call) for call in calls]


@pytest.mark.parametrize(("text", "settings", "expected"), CASES)
def test_pieces_do_not_matter(text, settings, expected):
    assert read([text], **settings) == expected
    assert read(text, **settings) == expected
    chance = random.Random(0)
    for _ in range(50):
        cuts = sorted(chance.choices(range(len(text) + 1), k=chance.randint(0, len(text))))
        ends = [*cuts, len(text)]
        pieces = [text[a:b] for a, b in zip([0, *cuts], ends, strict=True)]
        assert read(pieces, **settings) == expected


def test_a_message_is_joined_from_pieces_of_any_size():
    first, second = '{"name": "a", "arguments": {"x": 1}}', '{"name": "b", "arguments": {}}'
    said = f"<think>Hm.</think>I look.{OPEN}{first}{CLOSE}{OPEN}{second}{CLOSE}"
    for size in (1, 7, len(said)):
        reader, deltas = MessageReader(calls=True), []
        for start in range(0, len(said), size):
            deltas += reader.read(said[start : start + size], last=start + size >= len(said))
        whole = joined(deltas)
        assert (whole.content, whole.reasoning) == ("I look.", "Hm.")
        assert whole.calls == (("a", '{"x": 1}'), ("b", "{}"))
    assert joined([]) == ("", "", ())
