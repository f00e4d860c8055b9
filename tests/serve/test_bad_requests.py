"""Requests that the official client can send and the server must refuse, each by its field."""

import httpx2 as httpx
import openai
import pytest
from reciter import Running

from culm.model.attention.gqa import GQA
from culm.model.transformer import TransformerConfig
from culm.serve.clients import clients_of
from culm.serve.http.app import build
from culm.serve.settings import ServeConfig
from culm.text.language_model import LanguageModel
from culm.tokenizer.bytes import Bytes

HI = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"model": "gpt-5"}, "model_not_found", "model"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "invalid_value", "messages.0.role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "invalid_value",
            "messages.0.content",
        ),
        ({"messages": "hi"}, "invalid_value", "messages"),
        ({"temperature": 3}, "invalid_value", "temperature"),
        ({"temperature": "hot"}, "invalid_value", "temperature"),
        ({"top_p": -1}, "invalid_value", "top_p"),
        ({"n": 0}, "invalid_value", "n"),
        ({"n": 99}, "invalid_value", "n"),
        ({"n": 12}, "invalid_value", "n"),  # more than the server holds
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"max_tokens": -4}, "invalid_value", "max_tokens"),
        ({"messages": [{"role": "user", "content": "x" * 3000}]}, "context_length_exceeded", None),
        ({"stop": [""]}, "invalid_value", "stop.0"),
        ({"stop": ["x"] * 17}, "invalid_value", "stop"),
        ({"top_logprobs": 3}, "invalid_value", None),
        ({"logprobs": True, "top_logprobs": 21}, "invalid_value", "top_logprobs"),
        ({"logit_bias": {"9999": 1}}, "invalid_value", "logit_bias"),
        ({"stop_token_ids": [9999]}, "invalid_value", "stop_token_ids"),
        ({"logit_bias": {"7": 101}}, "invalid_value", None),
        ({"seed": 1 << 70}, "invalid_value", "seed"),
        ({"tools": [{"type": "function"}]}, "missing_required_parameter", "tools.0.function"),
        ({"response_format": {"type": "xml"}}, "invalid_value", "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "invalid_value", "response_format"),
        ({"tool_choice": "required"}, "invalid_value", None),
        ({"audio": {}}, "unsupported_parameter", "audio"),
    ],
)
def test_bad_chats(client, change, code, param):
    with pytest.raises(openai.APIStatusError) as caught:
        client.post(
            "/chat/completions",
            body={"model": "reciter", "messages": HI, **change},
            cast_to=object,
        )
    error = caught.value
    assert error.status_code == (404 if code == "model_not_found" else 400)
    assert error.type == "invalid_request_error"
    assert error.code == code
    if param:
        assert (error.param or "").startswith(param)
    assert error.body["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'"x"',
        b"null",
        b"",
        b'{"model": "reciter"}',
        b'{"model": "reciter", "messages": [{"role": "user", "content": "x"}], "top_p": NaN}',
        b'{"model": "reciter", "messages": ' + b"[" * 20000 + b"]" * 20000 + b"}",
        b"\xff\xfe",
    ],
)
def test_bad_bodies(running, body):
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{running.url}/v1/chat/completions", content=body, headers=headers)
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"]


def test_half_of_a_surrogate_pair_does_no_harm(running):
    body = b'{"model": "reciter", "messages": [{"role": "user", "content": "\\ud800"}]}'
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{running.url}/v1/chat/completions", content=body, headers=headers)
    assert answer.status_code in (200, 400)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[65], "x"]}, "prompt"),
        ({"prompt": [9999]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": {}}, "prompt"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "x", "best_of": 4, "n": 5}, None),
        ({"prompt": "x", "suffix": "y"}, None),
    ],
)
def test_bad_completions(running, body, param):
    answer = httpx.post(f"{running.url}/v1/completions", json={"model": "reciter", **body})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    if param:
        assert answer.json()["error"]["param"].startswith(param)


@pytest.mark.parametrize("path", ["chat/completions", "responses"])
def test_a_dialogue_for_a_model_without_a_chat_template(path: str) -> None:
    tokenizer = Bytes().build()
    attention = (GQA(heads=1, head_dim=8),)
    config = TransformerConfig(vocabulary=256, width=8, layers=1, context=64, attention=attention)
    app = build(
        LanguageModel(config.build(), tokenizer), "base", ServeConfig(), clients_of((), None)
    )
    server = Running(app)
    try:
        body = {"model": "base", "messages" if path.startswith("chat") else "input": HI}
        answer = httpx.post(f"{server.url}/v1/{path}", json=body)
        assert answer.status_code == 400
        assert "has no chat template" in answer.json()["error"]["message"]
    finally:
        server.stop()
