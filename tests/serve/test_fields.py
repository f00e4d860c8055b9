"""Fields of requests: honoured, without effect, or refused; never ignored in silence."""

import json
from typing import Any

import httpx2 as httpx
import pytest
from reciter import CONTEXT, TEXT

from culm.serve.http.protocol import ChatMessage

HI = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "clock", "parameters": {}}}


def chat(running: Any, **fields: Any) -> httpx.Response:
    body = {"model": "reciter", "messages": HI, "temperature": 0, **fields}
    return httpx.post(f"{running.url}/v1/chat/completions", json=body)


def complete(running: Any, **fields: Any) -> httpx.Response:
    body = {"model": "reciter", "prompt": "A", "temperature": 0, "max_tokens": 3, **fields}
    return httpx.post(f"{running.url}/v1/completions", json=body)


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"},
        {"safety_identifier": "x", "prompt_cache_key": "y", "request_id": "z"},
        {"tools": []},
        {"tools": [TOOL], "tool_choice": "none"},
        {"functions": [{"name": "clock"}], "function_call": "none"},
        {"tool_choice": "auto", "parallel_tool_calls": True},
        {"response_format": {"type": "text"}, "modalities": ["text"]},
        {"n": 1, "best_of": 1, "min_tokens": 0, "typical_p": 1.0},
        {"chat_template_kwargs": {}, "continue_final_message": False},
        {"guided_json": None, "grammar": None, "tools": None},
        {"stream_options": {"include_usage": False, "include_obfuscation": False}},
        {"max_tokens": 100_000},
    ],
)
def test_fields_without_effect_are_accepted(running, fields):
    answer = chat(running, **fields)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == TEXT


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("guided_json", {"type": "object"}),
        ("guided_regex", "a+"),
        ("grammar", "root ::= 'a'"),
        ("chat_template_kwargs", {"enable_thinking": False}),
        ("continue_final_message", True),
        ("add_generation_prompt", False),
        ("allowed_token_ids", [65]),
        ("min_tokens", 3),
        ("reasoning_effort", "high"),
        ("skip_special_tokens", False),
        ("include_stop_str_in_output", True),
        ("temprature", 0.5),
        ("n_predict", 5),
        ("echo", True),
        ("parse_special", True),  # the template of a chat is parsed anyway
        ("x" * 10_000, 1),
        ("", 1),
    ],
)
def test_fields_that_would_change_the_answer_are_refused(running, field, value):
    answer = chat(running, **{field: value})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] in ("unsupported_parameter", "unknown_parameter")
    assert error["param"] == field[:64]
    assert len(error["message"]) < 2000


def test_the_field_that_was_meant_is_named(running):
    message = chat(running, temprature=1).json()["error"]["message"]
    assert message == "temprature: there is no such field; did you mean 'temperature'?"


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([{"role": "user", "content": "x", "weight": 0}], "messages.0.weight"),
        ([{"role": "user", "content": "x", "audio": {"id": "1"}}], "messages.0.audio"),
        ([{"role": "assistant", "refusal": "no"}], "messages.0.refusal"),
        ([{"role": "user", "content": [{"type": "text", "text": "x", "size": 1}]}], "messages.0"),
    ],
)
def test_fields_of_messages_are_not_ignored_either(running, messages, param):
    answer = chat(running, messages=messages)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith(param)


def test_options_of_a_stream_are_not_ignored_either(running):
    for options in ({"continuous_usage_stats": True}, {"usage": True}):
        answer = chat(running, stream=True, stream_options=options)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == f"stream_options.{next(iter(options))}"


def test_the_history_of_a_client_is_replayed(running):
    """As clients send an answer back, with the fields that it came with, and results of tools."""
    first = chat(running).json()["choices"][0]["message"]
    messages = [
        *HI,
        {**first, "tool_calls": [], "function_call": None, "annotations": [], "audio": None},
        {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": 1}}]},
        {"role": "assistant", "content": "let me see", "tool_calls": None, "name": "model"},
        {"role": "tool", "content": "12:00", "tool_call_id": "call_1", "name": "clock"},
        {"role": "user", "content": "so?"},
    ]
    answer = chat(running, messages=messages)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == TEXT


def test_completions(running):
    assert complete(running, add_special_tokens=True).status_code == 200
    for field, value in (("suffix", "x"), ("add_special_tokens", False)):
        assert complete(running, **{field: value}).status_code == 400
    prompt = "A" * (CONTEXT - 2)
    choice = complete(running, prompt=prompt, max_tokens=100_000).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("BC", "length")
    answer = complete(running, prompt="A" * CONTEXT).json()
    assert answer["error"]["code"] == "context_length_exceeded"


def mean_logprob(choice: dict[str, Any], start: int = 0) -> float:
    values = choice["logprobs"]["token_logprobs"][start:]
    return sum(values) / len(values)


def test_best_of(running):
    """Of all answers to a prompt, those with the highest mean log-probability come back."""
    asked = {"prompt": ["A", "12"], "temperature": 2, "logit_bias": {"66": -3}, "seed": 3}
    every = complete(running, **asked, n=4, best_of=4, logprobs=0).json()["choices"]
    usage, best = [], []
    for fields in ({"logprobs": 0}, {}, {"echo": True, "logprobs": 0}):
        answer = complete(running, **asked, n=2, best_of=4, **fields).json()
        usage.append(answer["usage"]["completion_tokens"])
        best.append(answer["choices"])
    groups = [sorted(every[at : at + 4], key=mean_logprob, reverse=True)[:2] for at in (0, 4)]
    assert len({choice["text"] for choice in every[:4]}) > 2
    assert [choice["text"] for choice in best[0]] == [c["text"] for g in groups for c in g]
    assert [choice["index"] for choice in best[0]] == [0, 1, 2, 3]
    assert [mean_logprob(c) for c in best[0]] == [mean_logprob(c) for g in groups for c in g]
    assert all(choice["logprobs"] is None for choice in best[1])
    assert [c["text"] for c in best[1]] == [c["text"] for c in best[0]]
    prompts = ("A", "A", "12", "12")
    texts = [prompt + c["text"] for prompt, c in zip(prompts, best[0], strict=True)]
    assert [c["text"] for c in best[2]] == texts
    assert usage == [sum(len(c["text"]) for c in every)] * 3


def test_best_of_that_is_impossible(running):
    assert "less than n" in complete(running, n=3, best_of=2).text
    assert "stream=false" in complete(running, best_of=2, stream=True).text
    assert complete(running, best_of=2, n=2, stream=True).status_code == 200


def test_special_tokens_in_a_prompt(running):
    prompt = "<|user|>hi<|end|><|assistant|>"
    letters = complete(running, prompt=prompt).json()
    tokens = complete(running, prompt=prompt, parse_special=True).json()
    assert letters["usage"]["prompt_tokens"] == len(prompt)
    assert tokens["usage"]["prompt_tokens"] == 5
    assert tokens["choices"][0]["text"] == TEXT[:3]
    asked = {"prompt": prompt, "parse_special": True, "model": "reciter"}
    assert httpx.post(f"{running.url}/tokenize", json=asked).json()["count"] == 5


@pytest.mark.parametrize("stream", [False, True])
def test_scores_as_an_evaluation_harness_asks_for_them(running, stream):
    """One for each token of the prompt and for each generated one, an end of turn included."""
    ids = [*TEXT[-4:].encode()]
    exact = running.worker._engine.score([ids])[0].tolist()
    asked = {"prompt": [ids], "max_tokens": 1, "logprobs": 1, "echo": True, "seed": 1234}
    answer = complete(running, stream=stream, **asked)
    assert answer.status_code == 200
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
    parts = [json.loads(text)["choices"][0]["logprobs"] for text in lines or [answer.text]]
    assert len(parts) == (2 if stream else 1)
    found = {name: [value for part in parts for value in part[name]] for name in parts[0]}
    assert len(found["token_logprobs"]) == len(ids) + 1
    assert found["token_logprobs"][1:-1] == pytest.approx(exact, abs=1e-5)
    assert found["tokens"][-1] == "<|end|>"
    best = [max(top, key=lambda name: top[name]) for top in found["top_logprobs"][1:]]
    assert best == found["tokens"][1:]
    everything = chat(running, logprobs=True).json()
    count = everything["usage"]["completion_tokens"]
    assert len(everything["choices"][0]["logprobs"]["content"]) == count


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"prompt": "xé🙂X"}, "xé🙂XYZé🙂a"),
        ({"prompt": "<|user|>é<|end|>X", "parse_special": True}, "<|user|>é<|end|>XYZé🙂a"),
        ({"prompt": [256, *"é".encode(), 88]}, None),
        ({"prompt": "é", "echo": False}, "🙂abcde"),
    ],
)
def test_offsets_are_places_in_the_text(running, stream, asked, text):
    """Of each token in the characters of the answer, whatever its name is."""
    body = {"echo": True, "logprobs": 0, "temperature": 0, "max_tokens": 9, **asked}
    answer = complete(running, stream=stream, **body)
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
    choices = [json.loads(line)["choices"][0] for line in lines or [answer.text]]
    whole = "".join(choice["text"] for choice in choices)
    assert text is None or whole == text
    offsets = [place for c in choices for place in c["logprobs"]["text_offset"]]
    names = [name for c in choices for name in c["logprobs"]["tokens"]]
    assert offsets == sorted(offsets)
    assert len(offsets) == len(names)
    for place, name in zip(offsets, names, strict=True):
        if name.startswith("bytes:"):
            spelt = bytes.fromhex(name[6:].replace("\\x", ""))
            assert spelt in whole[place].encode()
        else:
            assert whole.startswith(name, place)


def test_null_is_absent_in_the_calls_of_a_history_too(running):
    call = {"id": None, "type": "function", "index": None}
    call["function"] = {"name": "f", "arguments": "{}", "strict": None}
    message = ChatMessage(role="assistant", content=None, tool_calls=[call])
    assert message.plain["tool_calls"] == [
        {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    ]
    assert "tool_call_id" not in ChatMessage(role="tool", content="4", tool_call_id=None).plain
    assert "content" not in message.plain  # as transformers: some templates test for it
    assert ChatMessage(role="assistant", content="").plain["content"] == ""
    assert ChatMessage(role="assistant", reasoning="2 and 2").plain["reasoning"] == "2 and 2"
    empty = {"role": "assistant", "content": "4", "reasoning_content": "", "tool_calls": []}
    assert ChatMessage(**empty).plain == empty  # a template may ask whether they are there
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert ChatMessage(role="user", content=parts).plain == {"role": "user", "content": "ab"}


def test_the_name_of_a_special_token_is_a_stop(running):
    """Which no text shows, so that a text alone would never end there."""
    body = {"messages": HI, "ignore_eos": True, "max_tokens": 200}
    endless = chat(running, **body).json()["choices"][0]
    assert endless["finish_reason"] == "length"
    ended = chat(running, **body, stop=["never", "<|end|>"]).json()["choices"][0]
    assert (ended["message"]["content"], ended["finish_reason"]) == (TEXT, "stop")
    answer = complete(running, prompt="k", ignore_eos=True, max_tokens=50, stop="<|end|>").json()
    assert answer["choices"][0]["text"] == "lm"
    model = running.app.state.service.model
    assert model.generate("k", 50, temperature=0.0, stop="<|user|>").startswith("lm")
    assert model.generate("k", 50, temperature=0.0, stop="<|end|>") == "lm"


@pytest.mark.parametrize("stream", [False, True])
def test_two_limits_that_contradict_each_other(running, stream):
    answer = chat(running, max_tokens=3, max_completion_tokens=5, stream=stream)
    assert answer.status_code == 400
    assert "max_completion_tokens: it contradicts max_tokens" in answer.json()["error"]["message"]
    for limits in ({"max_tokens": 3, "max_completion_tokens": 3}, {"max_completion_tokens": 3}):
        assert chat(running, **limits).json()["usage"]["completion_tokens"] == 3
