"""Calls of tools and forms of answers, through the official client."""

import json

import openai
import pytest
from scripted import scripted

pytest.importorskip("llguidance")

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a town.",
        "parameters": {
            "type": "object",
            "properties": {"town": {"type": "string", "maxLength": 8}},
            "required": ["town"],
            "additionalProperties": False,
        },
    },
}
TIME = {"type": "function", "function": {"name": "time"}}
ROME = '<tool_call>\n{"name": "weather", "arguments": {"town": "Rome"}}\n</tool_call>'
PARIS = ROME.replace("Rome", "Paris")
ASK = [{"role": "user", "content": "What is the weather?"}]


def asked(server, messages=ASK, **options):
    chat = server.client().chat.completions
    return chat.create(model="fixture", messages=messages, temperature=0, **options)


def streamed(server, **options):
    """The message that the chunks of a stream add up to, and the chunks."""
    message = {"content": "", "reasoning": "", "calls": []}
    chunks = [chunk.choices[0] for chunk in asked(server, stream=True, **options) if chunk.choices]
    for choice in chunks:
        message["content"] += choice.delta.content or ""
        message["reasoning"] += getattr(choice.delta, "reasoning_content", None) or ""
        for call in choice.delta.tool_calls or []:
            if call.id:
                assert call.index == len(message["calls"])
                assert call.type == "function"
                message["calls"].append([call.function.name, ""])
            message["calls"][call.index][1] += call.function.arguments
    return message, chunks


def test_calls_arrive_whole_and_in_pieces():
    with scripted(f"I look.\n{ROME}\n{PARIS}") as server:
        choice = asked(server, tools=[WEATHER]).choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "I look."
        calls = choice.message.tool_calls
        assert [call.function.name for call in calls] == ["weather", "weather"]
        assert [json.loads(call.function.arguments)["town"] for call in calls] == ["Rome", "Paris"]
        assert len({call.id for call in calls}) == 2
        message, chunks = streamed(server, tools=[WEATHER])
        assert message["content"] == "I look."
        assert message["calls"] == [[c.function.name, c.function.arguments] for c in calls]
        assert [one.finish_reason for one in chunks if one.finish_reason] == ["tool_calls"]
        pieces = [one for one in chunks if one.delta.tool_calls]
        assert len(pieces) > 10  # arguments come as they are written


def test_a_whole_dialogue_with_a_tool():
    answers = [
        {"when": "user: .*weather", "say": ROME},
        {"when": "tool: .*sunny", "say": "It is sunny in Rome."},
    ]
    with scripted(*answers) as server:
        first = asked(server, tools=[WEATHER]).choices[0].message
        assert first.content is None
        result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "sunny"}
        messages = [*ASK, first.model_dump(exclude_none=True), result]
        assert asked(server, messages, tools=[WEATHER]).choices[0].message.content == (
            "It is sunny in Rome."
        )


def test_without_tools_marks_are_text():
    with scripted(ROME) as server:
        for options in ({}, {"tools": [WEATHER], "tool_choice": "none"}):
            message = asked(server, **options).choices[0].message
            assert message.content == ROME
            assert not message.tool_calls


def test_a_choice_of_tools_is_kept():
    """The script says "no"; what must be called follows from the request alone."""
    with scripted("no") as server:
        for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
            found = asked(server, tools=[WEATHER], tool_choice=choice, max_tokens=200).choices[0]
            (call, *_) = found.message.tool_calls
            assert call.function.name == "weather"
            assert list(json.loads(call.function.arguments)) == ["town"]
        named = {"type": "function", "function": {"name": "time"}}
        found = asked(server, tools=[WEATHER, TIME], tool_choice=named, max_tokens=80).choices[0]
        assert [call.function.name for call in found.message.tool_calls] == ["time"]
        allowed = {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "required", "tools": [named]},
        }
        found = asked(server, tools=[WEATHER, TIME], tool_choice=allowed, max_tokens=80)
        assert found.choices[0].message.tool_calls[0].function.name == "time"


def test_one_call_where_several_are_not_wanted():
    with scripted(f"{ROME}\n{PARIS}") as server:
        found = asked(server, tools=[WEATHER], parallel_tool_calls=False).choices[0]
        assert len(found.message.tool_calls) == 1
        assert found.finish_reason == "tool_calls"


def test_strict_tools_get_arguments_of_their_schema():
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    wrong = '<tool_call>\n{"name": "weather", "arguments": {"city": 1}}\n</tool_call>'
    with scripted(wrong) as server:
        lax = asked(server, tools=[WEATHER]).choices[0].message.tool_calls[0].function
        assert json.loads(lax.arguments) == {"city": 1}
        found = asked(server, tools=[strict], max_tokens=200).choices[0].message.tool_calls[0]
        assert list(json.loads(found.function.arguments)) == ["town"]


def test_a_call_that_cannot_be_read_stays_text():
    with scripted("<tool_call>weather in Rome</tool_call> please") as server:
        choice = asked(server, tools=[WEATHER]).choices[0]
        assert choice.message.content == "<tool_call>weather in Rome</tool_call> please"
        assert choice.finish_reason == "stop"


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"response_format": {"type": "json_object"}}, r"\{.*"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {
                        "name": "n",
                        "schema": {
                            "type": "object",
                            "properties": {"n": {"type": "integer", "minimum": 7, "maximum": 7}},
                            "required": ["n"],
                            "additionalProperties": False,
                        },
                    },
                }
            },
            r'\{"n": 7\}',
        ),
        ({"extra_body": {"structured_outputs": {"choice": ["yes", "no"]}}}, r"yes|no"),
        ({"extra_body": {"structured_outputs": {"regex": r"\d{3}/[ab]"}}}, r"\d{3}/[ab]"),
        ({"extra_body": {"structured_outputs": {"grammar": 'start: "a" "b"+ "."'}}}, r"ab+\."),
        ({"extra_body": {"structured_outputs": {"json": {"const": "x"}}}}, r'"x"'),
    ],
)
def test_answers_have_the_form_that_was_asked_for(options, pattern):
    """The script says something else, and the form wins."""
    import re

    with scripted("Certainly!") as server:
        choices = asked(server, n=2, max_tokens=60, **options).choices
        for choice in choices:
            assert re.fullmatch(pattern, choice.message.content, re.DOTALL), choice
        message, _ = streamed(server, max_tokens=60, **options)
        assert message["content"] == choices[0].message.content


@pytest.mark.parametrize(
    "options",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": given}}}
        for given in (
            {"type": "nope"},
            {"$ref": "http://127.0.0.1/x"},
            {"type": "string", "minLength": -1},
            {"type": "string", "pattern": "(?=a)b"},
            {"enum": ["x" * 70_000]},
        )
    ]
    + [
        {"extra_body": {"structured_outputs": given}}
        for given in ({"regex": "(("}, {"grammar": "start"}, {"regex": "a", "choice": ["b"]}, {})
    ],
)
def test_a_form_that_cannot_be_kept_is_refused(options):
    with scripted("no") as server:
        with pytest.raises(openai.BadRequestError):
            asked(server, **options)
        assert asked(server).choices[0].message.content == "no"  # the engine lives on


def test_a_form_that_fails_on_the_way_ends_its_own_request_only():
    """A grammar may be valid and still grow beyond the limits of its parser."""
    with scripted("no") as server:
        service = server.app.state.service
        compiled = service._reader.grammars.compile
        service._reader.grammars.compile = lambda form: Copied()
        form = {"type": "json_object"}
        try:
            with pytest.raises(openai.BadRequestError) as caught:
                asked(server, response_format=form)
        finally:
            service._reader.grammars.compile = compiled
        assert caught.value.code == "invalid_schema"
        assert asked(server).choices[0].message.content == "no"


class Copied:
    """A constraint whose failure shows after the first token."""

    failure = None

    def copy(self):
        return Copied()

    def mask(self, output):
        self.failure = "too complex" if output else None
        return frozenset({65})


def test_reasoning_is_told_from_the_answer():
    with scripted("<think>\nShort.\n</think>\n\nFine, <b>.") as server:
        message = asked(server).choices[0].message
        assert message.content == "Fine, <b>."
        assert message.reasoning_content == "Short."
        found, _ = streamed(server)
        assert (found["content"], found["reasoning"]) == ("Fine, <b>.", "Short.")


def test_a_form_begins_after_the_reasoning():
    from culm.text.grammar import Grammars, after_reasoning, of_json
    from culm.tokenizer.bytes import Bytes

    tokenizer = Bytes(specials=True).build()
    grammar = Grammars(tokenizer, tokenizer.vocabulary).compile(
        after_reasoning(of_json({"type": "integer"}))
    )
    assert grammar.mask(list(b"any text {"))[ord("x")]
    after = grammar.mask(list(b"any text</think>\n\n1"))
    assert after[ord("2")]
    assert not after[ord("x")]
