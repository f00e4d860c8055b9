"""What users of other servers reported: each is a request that a server answered wrongly."""

import json
import random

import openai
import pytest
import torch
from reciter import Running
from scripted import scripted

from culm.model.attention.gqa import GQA
from culm.model.transformer import TransformerConfig
from culm.serve.http.app import build
from culm.text.language_model import LanguageModel
from culm.tokenizer.train import BPE

HI = [{"role": "user", "content": "hi"}]
TEXT = "Ünder the 🙂 green river, the fox said: “héllo” — 水が冷たい。" * 3


@pytest.fixture(scope="module")
def odd():
    """A random model whose tokens often are parts of characters."""
    torch.set_num_threads(1)
    tokenizer = BPE(vocabulary=300).build([TEXT])
    config = TransformerConfig(
        vocabulary=tokenizer.vocabulary, width=32, layers=1, context=128, attention=GQA(heads=2)
    )
    server = Running(build(LanguageModel(config.build(seed=4).eval(), tokenizer), "odd"))
    yield server
    server.stop()


def pieces(stream) -> dict[int, str]:
    texts: dict[int, str] = {}
    for chunk in stream:
        for one in chunk.choices:
            texts[one.index] = texts.get(one.index, "") + one.text
    return texts


@pytest.mark.parametrize("seed", range(4))
def test_choices_of_a_seed_are_the_same_in_a_stream(odd, seed):
    """Choices that shared a random state, and bytes of characters that were lost in a stream."""
    asked = {
        "model": "odd", "prompt": ["the", "水"], "n": 3, "seed": seed, "max_tokens": 40,
        "temperature": 1.5, "extra_body": {"ignore_eos": True},
    }  # fmt: skip
    client = odd.client()
    whole = {one.index: one.text for one in client.completions.create(**asked).choices}
    assert pieces(client.completions.create(**asked, stream=True)) == whole
    for first in (0, 3):
        assert len({whole[first + choice] for choice in range(3)}) == 3


@pytest.mark.parametrize("seed", range(6))
def test_stops_are_found_wherever_tokens_end(odd, seed):
    """Parts of a stop string that were shown, and stops that one token alone would hold."""
    client, chance = odd.client(), random.Random(seed)
    asked = {
        "model": "odd", "prompt": "the", "seed": seed, "max_tokens": 60, "temperature": 1.5,
        "extra_body": {"ignore_eos": True},
    }  # fmt: skip
    text = client.completions.create(**asked).choices[0].text
    for _ in range(6):
        place = chance.randrange(5, len(text) - 4)
        long = text[place : place + 4]
        if "\ufffd" in long:
            continue
        stops = [long, long + "never", long[1:] + "never"]
        first = text.index(long)
        cut = client.completions.create(**asked, stop=stops).choices[0]
        assert (cut.text, cut.finish_reason) == (text[:first], "stop")
        streamed = pieces(client.completions.create(**asked, stop=stops, stream=True))
        assert streamed == {0: text[:first]}


@pytest.mark.parametrize(("said", "stop", "text"), [
    ("aaab!", ["aab"], "a"),
    (">>> UPDATED\nx", [">>> UPDATED", ">>> UPDATED\n"], ""),
    (">>> UPDATE", [">>> UPDATED", ">>> UPDATED\n"], ">>> UPDATE"),
    ("xyz🙂", ["🙂🙂", "yz!"], "xyz🙂"),
])  # fmt: skip
def test_stops_that_begin_alike(said, stop, text):
    with scripted(said) as server:
        chat = server.client().chat.completions
        asked = {"model": "fixture", "messages": HI, "temperature": 0, "stop": stop}
        assert chat.create(**asked).choices[0].message.content == text
        chunks = chat.create(**asked, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text


def tool(name: str, **parameters: object) -> dict[str, object]:
    function = {"name": name, **({"parameters": parameters} if parameters else {})}
    return {"type": "function", "function": function}


def test_calls_without_arguments_and_names_that_begin_alike():
    """An empty text for arguments, calls with one index or id, and names that ran together."""
    said = "".join(
        f'<tool_call>{{"name": "{name}", "arguments": {{}}}}</tool_call>'
        for name in ("get", "get_2")
    )
    with scripted(said) as server:
        chunks = server.client().chat.completions.create(
            model="fixture",
            messages=HI,
            temperature=0,
            stream=True,
            tools=[tool("get"), tool("get_2")],
        )
        calls: dict[int, list[str]] = {}
        for chunk in chunks:
            for call in chunk.choices[0].delta.tool_calls or []:
                own = calls.setdefault(call.index, ["", "", ""])
                for place, new in enumerate((call.id, call.function.name, call.function.arguments)):
                    own[place] += new or ""
        assert [call[1:] for call in calls.values()] == [["get", "{}"], ["get_2", "{}"]]
        assert calls[0][0] != calls[1][0]
        named = {"type": "function", "function": {"name": "get_2"}}
        answer = server.client().chat.completions.create(
            model="fixture", messages=HI, temperature=0, tools=[tool("get"), tool("get_2")],
            tool_choice=named, max_tokens=90,
        )  # fmt: skip
        assert {one.function.name for one in answer.choices[0].message.tool_calls} == {"get_2"}


def test_a_stop_within_a_call_ends_it_and_the_rest_is_not_shown():
    said = '<tool_call>{"name": "get", "arguments": {"a": "x STOP y"}}</tool_call>'
    with scripted(said) as server:
        answer = server.client().chat.completions.create(
            model="fixture", messages=HI, temperature=0, tools=[tool("get")], stop="STOP"
        )
        call = answer.choices[0].message.tool_calls[0].function
        assert call.arguments == '{"a": "x '


@pytest.mark.parametrize(
    ("schema", "values"),
    [
        ({"enum": [1, 2.5, True, None]}, (1, 2.5, True, None)),
        ({"type": "object", "additionalProperties": False, "properties": {"b": {"const": "x"}},
          "required": ["b"]}, ({"b": "x"},)),
        ({"type": ["string", "null"], "maxLength": 3}, None),
        ({"anyOf": [{"type": "null"}, {"$ref": "#/$defs/a"}], "$defs": {"a": {"const": [1]}}},
         (None, [1])),
        ({"type": "object", "properties": {"é\"\\": {"const": "🙂"}}, "required": ["é\"\\"],
          "additionalProperties": False}, ({"é\"\\": "🙂"},)),
        (True, None),
    ],
)  # fmt: skip
def test_schemas_that_generators_write(schema, values):
    """Those that fell back to any JSON, or to the empty text."""
    import jsonschema

    pytest.importorskip("llguidance")
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    with scripted("no") as server:
        content = server.client().chat.completions.create(
            model="fixture", messages=HI, temperature=0, response_format=form, max_tokens=300
        ).choices[0].message.content  # fmt: skip
    found = json.loads(content)
    jsonschema.validate(found, schema)
    assert values is None or found in values


@pytest.mark.parametrize("schema", [{"$ref": "#/$defs/missing"}, {"$ref": "https://x/y.json"}])
def test_schemas_that_cannot_be_kept_are_no_free_text(schema):
    pytest.importorskip("llguidance")
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    with scripted("no") as server, pytest.raises(openai.BadRequestError) as caught:
        server.client().chat.completions.create(
            model="fixture", messages=HI, response_format=form, temperature=0
        )
    assert caught.value.code == "invalid_schema"


@pytest.mark.parametrize(
    "change",
    [
        {"tools": [], "tool_choice": "auto"},
        {"tools": None, "tool_choice": None},
        {"tool_choice": "none"},
        {"response_format": {"type": "text"}},
        {"stop": []},
        {"logit_bias": {}},
        {"functions": [], "function_call": None},
        {"stream_options": {"include_usage": True}},
        {"top_logprobs": 0},
        {"temperature": 0.0, "top_p": 1, "n": 1, "seed": None, "user": ""},
        {"max_tokens": 20, "max_completion_tokens": 20},
        {"messages": [{"role": "user", "content": "\ud83d\ude42".encode("utf-16", "surrogatepass")
                       .decode("utf-16")}]},
        {"messages": [{"role": "user", "content": []}]},
        {"messages": [{"role": "system", "content": "a"}, {"role": "developer", "content": "b"},
                      *HI]},
        {"messages": [*HI, {"role": "assistant", "content": None, "refusal": None, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "a", "arguments": '{"x": 1}'}}]},
            {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "ok"}]}]},
        {"messages": [*HI, {"role": "assistant", "content": "a"}, {"role": "assistant",
                                                                   "content": "b"}]},
    ],
)  # fmt: skip
def test_what_client_libraries_send_without_being_asked(change):
    with scripted("Hello!") as server:
        body = {"model": "fixture", "messages": HI, "temperature": 0, **change}
        answer = server.client().post("/chat/completions", body=body, cast_to=object)
        assert answer["choices"][0]["message"]["content"] == "Hello!"
