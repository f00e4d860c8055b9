"""Several servers behind one address: which of them is asked, and what a killed one costs."""

import json
import random
import signal
import socket
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager

import httpx2 as httpx
import openai
import pytest
from processes import answers, free_port, python
from reciter import TEXT, Running, reciter, until

from culm.config import SettingError
from culm.engine.prefix import BLOCK
from culm.serve.clients import Client, Clients, Limits
from culm.serve.http import app as application
from culm.serve.http.server import Server, listen, uvicorn_settings
from culm.serve.route.prefixes import CHARACTERS, Kept, prompt_keys
from culm.serve.route.replicas import Replicas
from culm.serve.route.router import Router, build
from culm.serve.route.server import route
from culm.serve.settings import ServeConfig

ASK = {"model": "reciter", "temperature": 0, "max_tokens": 4}
KEPT = 1024  # tokens of the prefix cache of a replica


class Front(Running):
    """A router in a thread, on a free port."""

    def __init__(self, urls, clients=Clients(), **settings):
        self.router = Router(urls, ServeConfig(**settings))
        self.listener = listen("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.server = Server(uvicorn_settings(build(self.router, clients)), self.router)
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],))
        self.thread.start()
        until(lambda: self.server.started)


@contextmanager
def routed(*replicas, **settings):
    front = Front([one.url for one in replicas], **settings)
    try:
        yield front
    finally:
        front.stop()
        for one in replicas:
            one.stop()


def said(text):
    return [{"role": "user", "content": text}]


# -- prefixes ---------------------------------------------------------------------------------


def test_a_dialogue_and_its_continuation_begin_with_the_same_keys():
    first = said("x" * 300)
    more = [*first, {"role": "assistant", "content": "yes"}, *said("and now?")]
    short, long = (prompt_keys({"messages": m, "stream": s}, "a", 64) for m, s in
                   ((first, True), (more, False)))  # fmt: skip
    assert len(json.dumps(first)) // CHARACTERS == len(short) == 2
    assert long[:2] == short
    for other in (
        prompt_keys({"messages": first}, "b", 64),
        prompt_keys({"messages": first, "model": "m"}, "a", 64),
        prompt_keys({"messages": said("y" * 300)}, "a", 64),
        prompt_keys({"messages": first, "tools": [{}]}, "a", 64),
    ):
        assert not set(other) & set(short)
    assert prompt_keys({"messages": more}, "a", 1) == short[:1]
    assert prompt_keys({"prompt": "short"}, "a", 64) == []
    assert len(prompt_keys({"prompt": "\ud800" * 200}, "a", 64)) > 0


def test_what_was_read_last_is_kept():
    kept = Kept(3)
    kept.add([b"a", b"b"])
    kept.add([b"c", b"d"])
    assert kept.match([b"a", b"b"]) == 1  # b went first: nothing is found without a
    assert kept.match([b"c", b"d"]) == 2
    assert kept.match([b"x", b"c"]) == 0


def test_the_one_that_knows_the_prompt_is_chosen_until_it_has_too_much_to_do():
    replicas = Replicas(["http://a", "http://b"], slots=2, blocks=100)
    one, other = replicas.all
    keys = [b"1", b"2", b"3", b"4"]
    other.kept.add(keys[:2])
    other.open = 1
    assert replicas.choose(keys, []) is other
    assert replicas.choose([*keys, b"5"], []) is one  # less than half is known
    other.open = 2
    assert replicas.choose(keys, []) is one
    one.open, other.open = 9, 10
    assert replicas.choose(keys, []) is other  # up to 1.25 times the mean
    other.open = 17
    assert replicas.choose(keys, []) is one
    one.up = False
    assert replicas.choose(keys, []) is other
    assert replicas.choose(keys, [other]) is one  # the last resort
    assert replicas.choose(keys, [one, other]) is None


def test_new_prompts_are_spread_and_two_routers_agree():
    first, second = (Replicas([f"http://{n}" for n in range(4)], 8, 100) for _ in range(2))
    found = Counter()
    for n in range(400):
        keys = [str(n).encode()]
        chosen = first.choose(keys, [])
        assert chosen.url == second.choose(keys, []).url
        found[chosen.url] += 1
    assert len(found) == 4
    assert min(found.values()) > 60  # 100 each


# -- requests ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def front():
    with routed(*(Running(slots=2, prefix_tokens=KEPT) for _ in range(2))) as one:
        yield one


def test_answers_streams_and_errors_pass_through(front):
    client = front.client()
    assert client.models.list().data[0].id == "reciter"
    ask = {"model": "reciter", "messages": said("hi"), "temperature": 0}
    whole = client.chat.completions.with_raw_response.create(**ask)
    assert whole.parse().choices[0].message.content == TEXT
    assert len(whole.headers.get_list("x-request-id")) == 1
    pieces = client.chat.completions.create(**ask, stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == TEXT
    with pytest.raises(openai.NotFoundError, match="no model 'x'"):
        client.chat.completions.create(**{**ask, "model": "x"})
    with pytest.raises(openai.BadRequestError) as found:
        client.post("/completions", body={"model": "reciter", "prompt": 3}, cast_to=object)
    assert found.value.body["param"] == "prompt"
    assert httpx.post(front.url + "/v1/completions", content="{", headers={
        "content-type": "application/json"}).json()["error"]["code"] == "invalid_json"  # fmt: skip
    assert "<title>" in httpx.get(front.url + "/").text
    assert httpx.get(front.url + "/nothing").status_code == 404
    reload = httpx.post(front.url + "/reload", json={})
    assert (reload.status_code, "its own address" in reload.text) == (404, True)
    assert httpx.get(front.url + "/health").json() == {"status": "ok"}
    pages = {"Origin": "http://evil.example"}
    assert httpx.get(front.url + "/v1/models", headers=pages).status_code == 403


def test_a_client_that_leaves_frees_the_slot_of_the_replica(front):
    body = json.dumps(
        {"model": "reciter", "messages": said("hi"), "max_tokens": 1500, "ignore_eos": True}
    )
    for stream in ("false", "true"):
        one = front.sent("/v1/chat/completions", f'{body[:-1]}, "stream": {stream}}}'.encode())
        until(lambda: not front.router.idle)
        one.close()
        until(lambda: front.router.idle)


def test_limits_are_those_that_the_replica_has_counted():
    def clients():
        return Clients([("secret", Client("web", Limits(requests_per_minute=9), salt="s"))])

    replica = Running(application.build(reciter(), "reciter", ServeConfig(), clients()))
    front = Front([replica.url], clients())
    try:
        chat = openai.OpenAI(base_url=f"{front.url}/v1", api_key="secret").chat.completions
        for left in ("8", "7"):
            answer = chat.with_raw_response.create(messages=said("hi"), **ASK)
            assert answer.headers["x-ratelimit-remaining-requests"] == left
    finally:
        front.stop()
        replica.stop()


def test_keys_are_checked_here_and_there():
    clients = Clients([("secret", Client("web", salt="s"))])
    replica = Running(api_key="secret")
    with routed(replica, clients=clients) as front:
        assert front.client("secret").models.list().data
        with pytest.raises(openai.AuthenticationError):
            front.client("other").models.list()
    with pytest.raises(SettingError, match="open to the network"):
        route(["http://127.0.0.1:1"], ServeConfig(host="0.0.0.0"))
    with pytest.raises(SettingError, match="twice"):
        route(["http://127.0.0.1:1", "http://127.0.0.1:1/"], ServeConfig())
    with pytest.raises(SettingError, match="URLS: x"):
        route(["x"], ServeConfig())


def hits(replicas) -> tuple[float, float]:
    """Tokens found in the prefix caches, and looked for."""
    counts = Counter()
    for one in replicas:
        for line in httpx.get(one.url + "/metrics").text.splitlines():
            name, _, value = line.partition("{")
            if name.startswith("vllm:prefix_cache") and name.endswith("total"):
                counts[name] += float(value.split()[-1])
    return counts["vllm:prefix_cache_hits_total"], counts["vllm:prefix_cache_queries_total"]


def dialogues(seed: int):
    """Turns of 8 dialogues, in any order; each has a beginning of its own, of 500 characters."""
    chance = random.Random(seed)
    texts = ["".join(chance.choices("abcdefgh ", k=500)) for _ in range(8)]
    open_ = {n: said(text) for n, text in enumerate(texts)}
    for _ in range(48):
        n = chance.choice(sorted(open_))
        yield open_[n]
        open_[n] = [*open_[n], {"role": "assistant", "content": "ABCD"}, *said("more " * 6)]


def share_of_hits(choose, count: int = 4, blocks: int = 96) -> float:
    """Of 48 requests, each to the address that `choose` names, to so many servers.

    blocks: of the cache of each, which has room for some of the dialogues.
    """
    replicas = [Running(slots=2, prefix_tokens=blocks * BLOCK) for _ in range(count)]
    with routed(*replicas, slots=2, prefix_tokens=blocks * BLOCK) as front:
        for messages in dialogues(0):
            one = choose(front, replicas)
            one.client().chat.completions.create(**ASK, messages=messages)
        found, asked = hits(replicas)
    return found / asked


def test_the_prefix_caches_find_more_than_with_random_choice():
    chance = random.Random(1)
    by_prefix = share_of_hits(lambda front, replicas: front)
    by_chance = share_of_hits(lambda front, replicas: chance.choice(replicas))
    print(f"prefix hits: {by_prefix:.1%} by prefix, {by_chance:.1%} by chance")
    assert by_prefix > 0.7
    assert by_prefix > by_chance + 0.2


# -- replicas that fail -----------------------------------------------------------------------


def test_a_replica_that_is_not_there_is_skipped_and_found_again():
    living, port = Running(), free_port()
    with routed(living) as front:
        front.stop()
        front = Front([f"http://127.0.0.1:{port}", living.url])
        try:
            for n in range(8):
                assert front.client().chat.completions.create(**ASK, messages=said(f"{n} " * 99))
            gone = front.router._replicas.all[0]
            assert not gone.up
            late = Running(port=port)
            until(lambda: gone.up)
            late.stop()
        finally:
            front.stop()


def test_without_any_replica_there_is_a_clear_error():
    front = Front([f"http://127.0.0.1:{free_port()}"])
    try:
        with pytest.raises(openai.InternalServerError) as found:
            front.client().models.list()
        assert (found.value.status_code, found.value.body["code"]) == (503, "no_replica")
        assert int(found.value.response.headers["retry-after"]) > 0
        assert httpx.get(front.url + "/health/ready").status_code == 503
    finally:
        front.stop()


def test_a_full_replica_passes_requests_on():
    full, free = Running(slots=1, waiting=0), Running(slots=1, waiting=0)
    endless = {"model": "reciter", "messages": said("hi"), "max_tokens": 1900, "ignore_eos": True}
    with routed(full, free) as front:
        held = [full.sent("/v1/chat/completions", json.dumps(endless).encode())]
        until(lambda: not full.worker.idle)
        for n in range(4):
            assert front.client().chat.completions.create(**ASK, messages=said(f"{n} " * 99))
        held.append(free.sent("/v1/chat/completions", json.dumps(endless).encode()))
        until(lambda: not free.worker.idle)
        with pytest.raises(openai.InternalServerError) as found:
            front.client().chat.completions.create(**ASK, messages=said("hi"))
        assert (found.value.status_code, found.value.body["code"]) == (503, "overloaded")
        assert not full.worker.idle
        for one in held:
            one.close()


def test_a_request_that_ends_servers_does_not_reach_all():
    """After two of three that read it and break off, the client gets an error."""
    servers = [listen("127.0.0.1", 0) for _ in range(3)]
    met = Counter()

    def break_off(listener, n):
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                if connection.recv(1 << 16).startswith(b"POST"):
                    met[n] += 1

    for n, one in enumerate(servers):
        threading.Thread(target=break_off, args=(one, n), daemon=True).start()
    front = Front([f"http://127.0.0.1:{one.getsockname()[1]}" for one in servers])
    try:
        for path, count in (("chat/completions", 2), ("../mcp", 1)):
            met.clear()
            answer = httpx.post(f"{front.url}/v1/{path}", json=ASK, timeout=30)
            assert (answer.status_code, answer.json()["error"]["code"]) == (502, "replica_lost")
            assert sum(met.values()) == count
    finally:
        front.stop()
        for one in servers:
            one.shutdown(socket.SHUT_RDWR)
            one.close()


def test_streams_that_outlast_the_drain_end_with_an_error():
    with routed(Running(slots=1), drain_seconds=0.2) as front:
        pieces = iter(
            front.client().chat.completions.create(
                model="reciter", messages=said("hi"), stream=True, max_tokens=1900,
                extra_body={"ignore_eos": True},
            )
        )  # fmt: skip
        next(pieces)
        front.server.handle_exit(signal.SIGTERM, None)
        with pytest.raises(openai.APIError, match="broke off"):
            list(pieces)
        front.thread.join(10)
        assert not front.thread.is_alive()


WORDS = " ".join(f"word{n}" for n in range(60))


@pytest.mark.slow
def test_no_request_is_lost_without_an_error_when_a_replica_is_killed(tmp_path):
    script = tmp_path / "script.yaml"
    script.write_text(f"seconds_per_token: 0.02\nanswers:\n  - say: {WORDS}\n")
    ports, outcomes = [free_port() for _ in range(3)], Counter()
    replicas = [f"http://127.0.0.1:{port}" for port in ports[1:]]
    url = f"http://127.0.0.1:{ports[0]}"

    def ask(n: int) -> None:
        ask = {"model": "fixture", "messages": said(f"{n} hi"), "max_tokens": 500}
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0, timeout=100)
        try:
            if n % 2:
                found = [p.choices[0] for p in client.chat.completions.create(**ask, stream=True)]
                text = "".join(one.delta.content or "" for one in found)
                whole = found[-1].finish_reason == "stop"
            else:
                choice = client.chat.completions.create(**ask).choices[0]
                text, whole = choice.message.content, choice.finish_reason == "stop"
            outcomes["right" if whole and text == WORDS else "cut in silence"] += 1
        except openai.APIError as error:
            outcomes[error.message] += 1

    with ExitStack() as stack:
        culm = ("-m", "culm")
        serve = [*culm, "serve", "--fixture", str(script), "--port"]
        processes = [
            stack.enter_context(python([*serve, str(port)], lambda r=r: answers(f"{r}/health")))
            for port, r in zip(ports[1:], replicas, strict=True)
        ]
        start = [*culm, "route", *replicas, "--port", str(ports[0])]
        router = stack.enter_context(python(start, lambda: answers(f"{url}/health")))
        threads = [threading.Thread(target=ask, args=(n,)) for n in range(12)]
        for thread in threads:
            thread.start()
        time.sleep(2)  # 360 tokens take 7 seconds
        processes[0].send_signal(signal.SIGKILL)
        for thread in threads:
            thread.join()
        print(outcomes)
        broken = outcomes["The server that answered broke off; ask again."]
        assert 0 < broken <= 6  # streams of the killed one, which had begun
        assert outcomes == {"right": 12 - broken, **{
            "The server that answered broke off; ask again.": broken}}  # fmt: skip
        thread = threading.Thread(target=ask, args=(0,))
        thread.start()
        time.sleep(1)
        router.send_signal(signal.SIGTERM)  # a running answer is finished
        thread.join()
        assert router.wait(30) == 0
        assert outcomes["right"] == 13 - broken
