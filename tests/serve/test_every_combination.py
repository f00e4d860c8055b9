"""Options of the API in all their combinations, by the official client in strict mode.

A stream adds up to the answer that comes at once, tokens of log-probabilities spell the text, the
usage counts the tokens, and a form is kept.
"""

import itertools
import json
from collections import defaultdict

import openai
import pytest
from openai import OpenAI
from scripted import scripted

from culm.text.message import MessageReader

pytest.importorskip("llguidance")
pytestmark = pytest.mark.slow

SAID = (
    "<think>\nHé 🙂?\n</think>\n\nI löok 🙂 it up.\n<tool_call>\n"
    '{"name": "weather", "arguments": {"town": "Zürich 🙂 \\"</b>\\""}}\n</tool_call>\n'
    '<tool_call>{"name": "time", "arguments": {}}</tool_call>'
)
WEATHER = {
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"town": {"type": "string", "maxLength": 6}},
        "required": ["town"],
        "additionalProperties": False,
    },
}
TIME = {"name": "time"}
SCHEMA = {
    "type": "object",
    "properties": {"n": {"enum": [1, 22, None]}, "ok": {"type": "boolean"}},
    "required": ["n", "ok"],
    "additionalProperties": False,
}
FORMATS = {
    "plain": None,
    "object": {"type": "json_object"},
    "schema": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
}
CHOICES = {
    "no tools": None,
    "auto": "auto",
    "none": "none",
    "required": "required",
    "named": {"type": "function", "function": {"name": "time"}},
}
STOPS = {"no stop": None, "stops": ["🙂 it", "🙂 itself", "never"]}


@pytest.fixture(scope="module")
def server():
    with scripted(SAID) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    return OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60,
        _strict_response_validation=True,
    )  # fmt: skip


def messages_of(chunks):
    """Choices as a client adds them up: content, reasoning, calls, entries of tokens, finish."""
    found = defaultdict(lambda: ["", "", [], [], None])
    ids, usages = set(), []
    for chunk in chunks:
        ids.add(chunk.id)
        usages.append(chunk.usage)
        for choice in chunk.choices:
            own, delta = found[choice.index], choice.delta
            assert own[4] is None, "nothing follows the end"
            own[0] += delta.content or ""
            own[1] += getattr(delta, "reasoning_content", None) or ""
            for call in delta.tool_calls or []:
                if call.id:
                    assert (call.index, call.type) == (len(own[2]), "function")
                    own[2].append([call.function.name, ""])
                own[2][call.index][1] += call.function.arguments
            own[3] += choice.logprobs.content if choice.logprobs else []
            own[4] = choice.finish_reason
    assert len(ids) == 1
    assert all(one is None for one in usages[:-1])
    return dict(found), usages[-1]


def counts(usage):
    """Without what the prefix cache knew."""
    return usage.prompt_tokens, usage.completion_tokens, usage.total_tokens


def message_of(choice):
    message = choice.message
    calls = [[one.function.name, one.function.arguments] for one in message.tool_calls or []]
    reasoning = getattr(message, "reasoning_content", None) or ""
    entries = choice.logprobs.content if choice.logprobs else []
    return [message.content or "", reasoning, calls, entries, choice.finish_reason]


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("choice", CHOICES)
def test_chats(client, choice, form, stop):
    options = {"model": "fixture", "messages": [{"role": "user", "content": "?"}]}
    options |= {"temperature": 0, "seed": 3}
    if CHOICES[choice]:
        tools = [{"type": "function", "function": one} for one in (WEATHER, TIME)]
        options |= {"tools": tools, "tool_choice": CHOICES[choice]}
    if FORMATS[form]:
        options["response_format"] = FORMATS[form]
    if STOPS[stop]:
        options["stop"] = STOPS[stop]
    must_call = choice in ("required", "named")
    for n, scored, limit in itertools.product((1, 2), (False, True), (9, 400)):
        asked = {**options, "n": n, "max_tokens": limit}
        if scored:
            asked |= {"logprobs": True, "top_logprobs": 2}
        if must_call and FORMATS[form]:
            with pytest.raises(openai.BadRequestError):
                client.chat.completions.create(**asked)
            continue
        whole = client.chat.completions.create(**asked)
        usage = {"include_usage": True}
        chunks = client.chat.completions.create(**asked, stream=True, stream_options=usage)
        streamed, used = messages_of(chunks)
        assert counts(used) == counts(whole.usage)
        for one in whole.choices:
            found = message_of(one)
            assert streamed[one.index] == found
            check(found, choice, form if stop == "no stop" else "cut", scored)
        if scored and not STOPS[stop]:
            entries = sum(len(one.logprobs.content) for one in whole.choices)
            assert entries == whole.usage.completion_tokens


def check(found, choice, form, scored):
    content, reasoning, calls, entries, finish = found
    assert finish in ("stop", "length", "tool_calls")
    assert (finish == "tool_calls") <= bool(calls)
    assert "\ufffd" not in content + reasoning or finish == "length"
    if finish != "length":
        for name, arguments in calls:
            assert isinstance(json.loads(arguments), dict), arguments
            assert name in ("weather", "time")
        if form == "schema" and not calls:
            assert json.loads(content)["n"] in (1, 22, None)
        elif form == "object" and not calls:
            assert isinstance(json.loads(content), dict)
        if choice in ("required", "named"):
            assert finish == "tool_calls"
    if scored:
        spelt = b"".join(bytes(one.bytes) for one in entries).removesuffix(b"<|end|>")
        reader = MessageReader(calls=choice not in ("no tools", "none"))
        deltas = reader.read(spelt.decode(errors="replace"), last=True)
        assert "".join(delta.content for delta in deltas) == content
        assert "".join(delta.reasoning for delta in deltas) == reasoning


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("stop", STOPS)
def test_completions(server, client, echo, stop):
    lax = server.client()  # OpenAI's own chunks have no reason to finish before the last one
    for n, scored, limit in itertools.product((1, 2), (None, 0, 2), (1, 9, 60)):
        asked = {
            "model": "fixture", "prompt": ["é🙂", "b"], "n": n, "max_tokens": limit, "echo": echo,
            "logprobs": scored, "stop": STOPS[stop], "temperature": 0,
        }  # fmt: skip
        # The first token of a prompt has no probability, which the strict client does not expect.
        whole = (lax if echo else client).completions.create(**asked)
        usage = {"include_usage": True}
        chunks = list(lax.completions.create(**asked, stream=True, stream_options=usage))
        assert counts(chunks[-1].usage) == counts(whole.usage)
        for one in whole.choices:
            own = [c for chunk in chunks for c in chunk.choices if c.index == one.index]
            assert "".join(c.text for c in own) == one.text
            assert [c.finish_reason for c in own if c.finish_reason] == [one.finish_reason]
            assert one.text.startswith("é🙂" if one.index < n else "b") or not echo
            if scored is None:
                assert one.logprobs is None
                continue
            for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                joined = [value for c in own for value in getattr(c.logprobs, name)]
                assert joined == getattr(one.logprobs, name)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("choice", CHOICES)
def test_responses(client, choice, form):
    options = {"model": "fixture", "input": "?", "temperature": 0}
    if CHOICES[choice]:
        named = {"type": "function", "name": "time"}
        options["tools"] = [{"type": "function", "strict": False, **one} for one in (WEATHER, TIME)]
        options["tool_choice"] = named if choice == "named" else CHOICES[choice]
    if form == "object":
        options["text"] = {"format": {"type": "json_object"}}
    elif form == "schema":
        options["text"] = {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}}
    for limit in (9, 400):
        asked = {**options, "max_output_tokens": limit}
        if choice in ("required", "named") and form != "plain":
            with pytest.raises(openai.BadRequestError):
                client.responses.create(**asked)
            continue
        whole = client.responses.create(**asked)
        events = list(client.responses.create(**asked, stream=True))
        last = events[-1].response
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert (last.status, last.usage.total_tokens) == (whole.status, whole.usage.total_tokens)
        assert last.output_text == whole.output_text
        texts = [e.delta for e in events if e.type == "response.output_text.delta"]
        assert "".join(texts) == whole.output_text
        kinds = [item.type for item in whole.output]
        assert [item.type for item in last.output] == kinds
        if whole.status == "completed" and choice in ("required", "named"):
            assert set(kinds) == {"function_call"}
        for item in whole.output:
            if item.type == "function_call" and whole.status == "completed":
                assert isinstance(json.loads(item.arguments), dict)
