"""What no client should send: it gets an error of its own, and the server serves the others."""

import json
import socket

import httpx2 as httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reciter import Running, until

from culm.serve.http.guard import POLICY

PATHS = ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize")
JSON = {"content-type": "application/json"}
FUZZ = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def works(server: Running) -> bool:
    """Whether an ordinary request is answered."""
    return httpx.get(server.url + "/v1/models").status_code == 200


# -- headers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/nothing", "/v1/models", "/health/", "/v1/models/%ED%A0"])
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://["},
        {"origin": "http://[::1"},
        {"origin": "//[x]"},
        {"host": "["},
        {"host": "[::1"},
        {"host": "a]b"},
        {"host": "localhost:99999999"},
        {"host": "localhost", "origin": "null"},
        {"host": ""},
        {"origin": b"http://\xff\xfe"},
        {"authorization": b"Bearer \xff"},
        {"content-type": b"\xff/\xfe"},
        {"host": b"\xe2\x84\x80"},
    ],
)  # fmt: skip
def test_odd_headers(running, path, headers):
    answer = httpx.get(running.url + path, headers=headers)
    assert answer.status_code in (200, 400, 403, 404), answer.text
    assert answer.headers["content-security-policy"]


def test_odd_headers_reach_no_code_on_an_open_server():
    """Which checks neither host nor origin, and repeats neither."""
    server = Running(local=False)
    try:
        for host in ("[", "evil.example", "a]b:c"):
            for path in ("/health/", "/nothing", "/v1/models"):
                answer = httpx.get(server.url + path, headers={"host": host, "origin": "http://["})
                assert answer.status_code in (200, 404)
                assert "location" not in answer.headers
    finally:
        server.stop()


HEADER = st.binary(max_size=40).map(lambda raw: bytes(b for b in raw if b > 32 and b != 127))


@pytest.mark.slow
@FUZZ
@given(host=HEADER, origin=HEADER, key=HEADER, kind=HEADER)
def test_fuzzed_headers(running, host, origin, key, kind):
    headers = {"host": host, "origin": origin, "authorization": key, "content-type": kind}
    answer = httpx.post(running.url + "/tokenize", content=b'{"prompt": "x"}', headers=headers)
    assert 200 <= answer.status_code < 500


@pytest.mark.parametrize("length", [b"1" * 5000, b"-1", b"\xb2", b"1e3", b"0x10", b" "])
def test_odd_lengths_of_a_body(running, length):
    port = running.listener.getsockname()[1]
    head = b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(head + b"content-length: " + length + b"\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    assert answer.split()[1] in (b"400", b"413")
    assert b"content-security-policy: default-src" in answer
    assert b'{"error":{"message":' in answer
    assert works(running)


@pytest.mark.parametrize("head", ["", "POST /tokenize HTTP/1.1\r\ntransfer-encoding: chunked\r\n"])
@pytest.mark.parametrize(
    "rest", [b"\x16\x03\x01\r\n\r\n", b"GET\r\n\r\n", b"host: localhost\r\n\r\nzz"]
)
def test_what_is_not_http(running, head, rest):
    port = running.listener.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(head.encode() + rest + b"\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    assert answer.split()[1] == b"400"
    assert works(running)


def test_every_response_has_a_policy_and_a_number(running, monkeypatch):
    monkeypatch.setattr(running.app.state.service, "check_open", lambda count=0: 1 / 0)
    answers = {
        200: httpx.get(running.url + "/v1/models"),
        404: httpx.get(running.url + "/redoc"),
        405: httpx.put(running.url + "/health"),
        403: httpx.get(running.url + "/", headers={"host": "evil.example"}),
        415: httpx.post(running.url + "/tokenize", content=b"x"),
        500: httpx.get(running.url + "/health/ready"),
    }
    for status, answer in answers.items():
        assert answer.status_code == status
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-request-id"]
        if status >= 400:
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_the_only_page_is_the_chat(running):
    routes = httpx.get(running.url + "/openapi.json").json()["paths"]
    for path in ("/", *routes, "/docs", "/redoc", "/docs/oauth2-redirect", "/openapi.json"):
        answer = httpx.get(running.url + path)
        html = "text/html" in answer.headers.get("content-type", "")
        assert html == (path == "/")
        assert "default-src 'none'" in answer.headers["content-security-policy"]


def post(server: Running, path: str, body: bytes) -> tuple[int, bytes]:
    """Status and body; much faster than a client that sends head and body separately."""
    with server.sent(path, body, "connection: close\r\n") as client:
        answer = b"".join(iter(lambda: client.recv(1 << 16), b""))
    head, _, rest = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), rest


# -- bodies -------------------------------------------------------------------------------------

ODD = [
    b'"\\ud800"', b'"\xed\xa0\x80"', b"1" * 5000, b"1e999", b"-1e999", b"NaN",
    b"[" * 500 + b"]" * 500, b'{"a":' * 500 + b"1" + b"}" * 500, b"null", b"true",
    b'""', b"[]", b"{}", b'[""]', b"[[]]",
    b"[[1]]", b"[null]", b"1e400", b"-1", b"9223372036854775808", b'"\\u0000"', b"0.5", b'"1"',
]  # fmt: skip
NAMES = (
    "model", "messages", "prompt", "tokens", "stream", "stream_options", "n", "max_tokens", "stop",
    "temperature", "top_p", "logit_bias", "seed", "top_k", "stop_token_ids", "logprobs", "echo",
    "tools", "metadata", "user", "best_of", "parse_special", "return_token_ids",
    "return_tokens_as_token_ids",
)  # fmt: skip
GOOD = {
    "/v1/chat/completions": {"model": "reciter", "messages": [{"role": "user", "content": "x"}]},
    "/v1/completions": {"model": "reciter", "prompt": "x", "echo": True, "logprobs": 1},
    "/tokenize": {"prompt": "x"},
    "/detokenize": {"tokens": [65]},
}  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_odd_values_of_every_field(running, path):
    good = {**GOOD[path]}
    if "model" in good:
        good["max_tokens"] = 2
    for name in NAMES:
        for odd in ODD:
            rest = [(k, json.dumps(v).encode()) for k, v in good.items() if k != name]
            fields = [*rest, (name, odd)]
            body = b"{%s}" % b",".join(b'"%s":%s' % (k.encode(), v) for k, v in fields)
            status, answer = post(running, path, body)
            assert status in (200, 400, 404), (name, odd[:40], answer)
            assert status == 200 or json.loads(answer)["error"]["message"]
    until(lambda: running.worker.idle)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "text", ['"\\ud800"', '"a\\udfffb"', '["\\ud83d"]', '{"\\udc00": 1}', '[{"a": ["\\ud800"]}]']
)  # fmt: skip
def test_half_of_a_surrogate_pair_is_refused_wherever_it_stands(running, path, text):
    good = json.dumps(GOOD[path])
    for name in ("prompt", "messages", "metadata", "stop", "model", "nothing"):
        body = f'{good[:-1]}, "{name}": {text}}}'
        answer = httpx.post(running.url + path, content=body.encode(), headers=JSON)
        assert answer.status_code == 400
        assert "surrogate" in answer.json()["error"]["message"]


DEEP = [
    ("/v1/chat/completions", "messages",
     '[{"role": "assistant", "tool_calls": [{"function": %s}]}]'),
    ("/v1/chat/completions", "tools",
     '[{"type": "function", "function": {"name": "a", "parameters": {"a": %s}}}]'),
    ("/v1/chat/completions", "response_format",
     '{"type": "json_schema", "json_schema": {"name": "a", "schema": {"a": %s}}}'),
    ("/v1/responses", "tools", '[{"type": "function", "name": "a", "parameters": {"a": %s}}]'),
    ("/v1/chat/completions", "metadata", "%s"),
]  # fmt: skip


@pytest.mark.parametrize("depth", [100, 130, 700, 940])
@pytest.mark.parametrize(("path", "name", "place"), DEEP)
def test_deep_values_are_refused_before_anything_follows_them(running, path, name, place, depth):
    """Whatever follows them recursively would fail: templates, schemas, the response."""
    deep = place % ('{"a":' * depth + "1" + "}" * depth)
    rest = (
        '"input": "x"' if "responses" in path else '"messages": [{"role": "user", "content": ""}]'
    )
    rest = "" if name == "messages" else f", {rest}"
    status, answer = post(running, path, f'{{"model": "reciter", "{name}": {deep}{rest}}}'.encode())
    assert status == 400 if depth > 128 else status in (200, 400)
    if depth > 128:
        assert "deep" in answer.decode() or "pars" in answer.decode()


VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5) | st.sampled_from(NAMES), inner, max_size=4)
    ),
    max_leaves=8,
)


@FUZZ
@given(
    path=st.sampled_from(PATHS),
    fields=st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=9), VALUE, max_size=4),
)
def test_fuzzed_bodies(running, path, fields):
    body = json.dumps({**GOOD[path], **fields}).encode()
    answer = httpx.post(running.url + path, content=body, headers=JSON, timeout=60)
    assert answer.status_code in (200, 400, 404), answer.text


@pytest.mark.slow
@FUZZ
@given(path=st.sampled_from(PATHS), body=st.binary(max_size=60))
def test_fuzzed_bytes(running, path, body):
    answer = httpx.post(running.url + path, content=body, headers=JSON)
    assert answer.status_code == 400
