"""The Responses API, by the official client in strict mode."""

import json

import openai
import pytest
from openai import OpenAI
from scripted import scripted

ROME = '<tool_call>\n{"name": "weather", "arguments": {"town": "Rome"}}\n</tool_call>'
WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a town.",
    "strict": False,
    "parameters": {
        "type": "object",
        "properties": {"town": {"type": "string", "maxLength": 8}},
        "required": ["town"],
        "additionalProperties": False,
    },
}
SCRIPT = [
    {"when": "user: .*weather", "say": f"<think>\nAsk.\n</think>\n\nI look.\n{ROME}"},
    {"when": "tool: .*sunny", "say": "It is sunny in Rome."},
    {"when": "", "say": "Hello!"},
]


@pytest.fixture(scope="module")
def strict():
    with scripted(*SCRIPT) as server:
        yield OpenAI(
            base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=20,
            _strict_response_validation=True,
        )  # fmt: skip


def ask(client, given="hi", **options):
    return client.responses.create(model="fixture", input=given, temperature=0, **options)


def test_a_text_in_and_a_text_out(strict):
    found = ask(strict, instructions="Be short.", max_output_tokens=50)
    assert found.output_text == "Hello!"
    assert found.status == "completed"
    assert found.usage.output_tokens == len("Hello!") + 1
    cut = ask(strict, max_output_tokens=3)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert cut.output_text == "Hel"


def test_a_dialogue_with_a_tool(strict):
    first = ask(strict, "What is the weather?", tools=[WEATHER])
    assert [item.type for item in first.output] == ["reasoning", "message", "function_call"]
    call = first.output[-1]
    assert json.loads(call.arguments) == {"town": "Rome"}
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    said = [item.model_dump(exclude_none=True) for item in first.output if item.type != "reasoning"]
    again = ask(strict, [{"role": "user", "content": "weather?"}, *said, result], tools=[WEATHER])
    assert again.output_text == "It is sunny in Rome."


def test_the_events_of_a_stream_add_up_to_the_response(strict):
    events = list(ask(strict, "What is the weather?", tools=[WEATHER], stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [events[0].type, events[1].type] == ["response.created", "response.in_progress"]
    final = events[-1]
    assert final.type == "response.completed"
    texts = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(texts) == final.response.output_text == "I look."
    arguments = "".join(
        event.delta for event in events if event.type == "response.function_call_arguments.delta"
    )
    assert arguments == final.response.output[-1].arguments
    assert sum(event.type == "response.function_call_arguments.delta" for event in events) > 3
    added = [event.item.type for event in events if event.type == "response.output_item.added"]
    done = [event.item.type for event in events if event.type == "response.output_item.done"]
    assert added == done == ["reasoning", "message", "function_call"]
    thought = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
    assert "".join(thought) == "Ask."


def test_forms_and_choices_of_tools(strict):
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"n": {"const": 7}}, "required": ["n"],
              "additionalProperties": False}  # fmt: skip
    form = {"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}}
    assert json.loads(ask(strict, text=form).output_text) == {"n": 7}
    named = {"type": "function", "name": "weather"}
    forced = ask(strict, tools=[WEATHER], tool_choice=named, max_output_tokens=200)
    assert forced.output[-1].name == "weather"


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": []}, "input"),
        ({"input": [{"type": "message", "role": "user"}]}, "input.0"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0"),
        ({"tools": [{"type": "web_search"}]}, "tools.0"),
        ({"truncation": "auto"}, "truncation"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"background": True}, "background"),
        ({"n": 2}, "n"),
    ],
)
def test_what_cannot_be_kept_is_refused(strict, options, param):
    body = {"model": "fixture", "input": "hi", **options}
    with pytest.raises(openai.BadRequestError) as caught:
        strict.post("/responses", body=body, cast_to=object)
    assert (caught.value.param or "").startswith(param)
