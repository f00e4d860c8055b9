"""Search in the web and its pages, by a server of the test in place of the internet."""

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler

import pytest
from stub_server import StubServer

from culm.config import SettingError
from culm.tools.fetch import fetch, is_public
from culm.tools.function import ToolError, run
from culm.tools.web import Brave, Google, SearXNG, engine_of, web_functions

HTML = (
    "<html><head><title>x</title><script>bad()</script></head><body><p>One &amp; two</p>"
    "<!-- hidden --><div>three<br>four</div></body></html>"
)
HIT = {"title": "A <b>title</b>", "url": "http://a.example/", "content": "some text"}


class Pages(BaseHTTPRequestHandler):
    seen: list = []  # noqa: RUF012

    def do_GET(self):
        self.seen.append((self.path, dict(self.headers)))
        path = self.path.partition("?")[0]
        if path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        kind, body = {
            "/page": ("text/html; charset=utf-8", HTML.encode()),
            "/latin": ("text/plain; charset=latin-1", "é".encode("latin-1")),
            "/image": ("image/png", b"x"),
            "/large": ("text/plain", b"x" * (2 << 20)),
            "/search": ("application/json", json.dumps({"results": [HIT] * 9}).encode()),
            "/brave": ("application/json", json.dumps({"web": {"results": [HIT]}}).encode()),
            "/google": ("application/json", json.dumps(
                {"items": [{"title": "t", "link": "http://g.example", "snippet": "s"}]}).encode()),
            "/odd": ("application/json", b"[1]"),
            "/nasty": ("text/html", b"<!--" * 200_000),
            "/angles": ("text/html", b"<p" * 400_000),
        }.get(path, ("text/plain", b""))  # fmt: skip
        self.send_response(404 if path == "/none" else 200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        if path == "/slow":
            for _ in range(100):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.1)
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    Pages.seen = []
    found = StubServer(("127.0.0.1", 0), Pages)
    found.handle_error = lambda *_: None  # clients leave
    thread = threading.Thread(target=found.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{found.server_port}"
    found.shutdown()
    thread.join()
    found.server_close()


def local(address):
    """In the place of `is_public`."""
    return address == "127.0.0.1"


PRIVATE = """\
127.0.0.1 127.9.9.9 0.0.0.0 10.0.0.1 172.16.5.5 192.168.1.1 169.254.169.254 100.64.0.1 224.0.0.1
255.255.255.255 198.18.0.1 ::1 :: fe80::1 fe80::1%eth0 fc00::1 fd00:ec2::254 ff02::1
::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 64:ff9b::7f00:1 2002:7f00:1:: 2001:db8::1
::127.0.0.1 nonsense"""


@pytest.mark.parametrize("address", PRIVATE.split())
def test_addresses_inside_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_addresses_of_the_internet_are(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://a.example", "gopher://x", "/etc/passwd", "", "http://", "data:,x",
     "http://user:key@a.example/", "http://a.example:99999/", "http://[::1/", "javascript:1",
     "http://127.0.0.1/", "http://localhost/", "http://[::1]/", "http://[::ffff:127.0.0.1]/",
     "http://2130706433/", "http://0x7f.1/", "http://127.1/", "http://169.254.169.254/latest",
     "http://0/", "HTTP://LOCALHOST/", "http://nothing.invalid/", "http://" + "a" * 300 + "/"],
)  # fmt: skip
def test_urls_that_are_never_opened(url):
    with pytest.raises(ToolError):
        fetch(url, 2)


def test_a_page_is_its_text(server):
    open_url = list(web_functions(SearXNG(server), local))[1]
    assert run(open_url, {"url": f"{server}/page?a=1 2"}, 5).text == (
        f"{server}/page?a=1 2\n\nOne & two\nthree\nfour"
    )
    assert fetch(f"{server}/latin", 5, local).text == "é"
    for path, said in [("image", "no text"), ("large", "larger than 1 MB"), ("none", "404")]:
        assert said in run(open_url, {"url": f"{server}/{path}"}, 5).text


@pytest.mark.parametrize("path", ["nasty", "angles"])
def test_a_page_that_is_made_to_be_slow_is_read_at_once(server, path):
    start = time.monotonic()
    assert not run(
        list(web_functions(SearXNG(server), local))[1], {"url": f"{server}/{path}"}, 9
    ).failed
    assert time.monotonic() - start < 4


def test_a_slow_server_is_left(server):
    start = time.monotonic()
    with pytest.raises(ToolError, match="too long"):
        fetch(f"{server}/slow", 0.5, local)
    assert time.monotonic() - start < 3


def test_each_redirect_is_checked(server):
    assert fetch(f"{server}/to//page", 5, local).url == f"{server}/page"
    for target in ("http://127.0.0.2/", "http://10.0.0.1/", "file:///etc/passwd"):
        with pytest.raises(ToolError, match=r"public|http and https"):
            fetch(f"{server}/to/{target}", 5, local)
    with pytest.raises(ToolError, match="redirects"):
        fetch(f"{server}/to/" + "/to/" * 20, 5, local)


def test_a_name_is_resolved_once_and_all_its_addresses_are_checked(server, monkeypatch):
    port = int(server.rsplit(":", 1)[1])
    answers = iter([["127.0.0.1"], ["8.8.8.8", "10.0.0.1"]])
    asked = []

    def resolve(host, port, *_, **__):
        if host == "127.0.0.1":  # the connection to the pinned address
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))]
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in next(answers)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert fetch(f"http://name.example:{port}/latin", 5, local).text == "é"
    assert asked == ["name.example"]
    assert Pages.seen[-1][1]["Host"] == f"name.example:{port}"
    with pytest.raises(ToolError, match="public"):
        fetch("http://name.example/", 5)


def test_search_engines(server, monkeypatch):
    ask = {"query": "a b"}
    search, _ = web_functions(SearXNG(server))
    found = run(search, ask, 5).text
    assert found.startswith("A title\nhttp://a.example/\nsome text\n\n")
    assert found.count("A title") == 5
    assert Pages.seen[-1][0] == "/search?q=a+b&format=json"
    search, _ = web_functions(Brave("key", f"{server}/brave"))
    assert run(search, ask, 5).text.startswith("A title\nhttp://a.example/")
    assert Pages.seen[-1][1]["X-Subscription-Token"] == "key"
    search, _ = web_functions(Google("secret", "cx", f"{server}/google"))
    assert run(search, ask, 5).text == "t\nhttp://g.example\ns"
    for url, said in [("odd", "form"), ("none", "404"), ("to/http://127.0.0.1:9", "302")]:
        search, _ = web_functions(Google("secret", "cx", f"{server}/{url}"))
        found = run(search, ask, 5)
        assert said in found.text
        assert "secret" not in found.text


def test_settings_of_engines(monkeypatch):
    monkeypatch.setenv("BRAVE_API_KEY", "b")
    monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
    assert engine_of("brave") == Brave("b")
    assert engine_of("searxng=http://localhost:8888") == SearXNG("http://localhost:8888")
    for wrong in ("google=x", "google", "searxng", "searxng=file:///x", "bing", ""):
        with pytest.raises(SettingError):
            engine_of(wrong)
