"""An endpoint with the API of OpenAI, over HTTP."""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.client import HTTPException, HTTPResponse
from typing import Any, TypeVar
from urllib.error import HTTPError, URLError

from culm.address import check_address
from culm.config import SettingError, UnavailableError

T = TypeVar("T")
R = TypeVar("R")

AGAIN = (408, 409, 425, 429)  # besides 5xx: statuses after which the same request may succeed
DELAY, LONGEST = 0.5, 30.0  # seconds before the second attempt, doubled each time; and at most
LARGEST = 4 << 20  # bytes of an answer
SHOWN = 200  # characters of what a server says
# The words of OpenAI, vLLM, SGLang and our server (length), and of llama.cpp (size).
TOO_LONG = re.compile(rb"context[ _](length|size|window)")


class EndpointError(Exception):
    """No answer came; the message says why."""


class ContextExceeded(EndpointError):
    """A request is longer than the context of the model."""


class ServiceFailed(UnavailableError):
    """A service that a run cannot continue without; what was done before is valid."""


class Transient(EndpointError):
    """Another attempt may succeed. after: seconds to wait before it, where the server says so.
    status: of HTTP; None: no answer came.
    """

    def __init__(self, message: str, after: float | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.after, self.status = after, status


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the API key to another server."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


OPENER = urllib.request.build_opener(_NoRedirect)


@dataclass(frozen=True)
class Endpoint:
    """url: of the API, such as http://localhost:8000/v1. timeout: seconds of an attempt. retries:
    further attempts after one that failed.
    """

    url: str
    model: str
    timeout: float
    retries: int
    key: str | None = field(default=None, repr=False)

    def answer(self, prompt: str, max_tokens: int) -> str:
        """The text that the model answers, at temperature 0.

        Raises:
            EndpointError: none came.
        """
        messages = [{"role": "user", "content": prompt}]
        asked = {"temperature": 0, "max_tokens": max_tokens, "messages": messages}
        return _text_of(self.chat(asked))

    def chat(self, body: Mapping[str, Any]) -> bytes:
        """The answer to a chat completion.

        Some servers, such as vLLM, count the limit of a reply as if it were all used. Where that is
        more than the context, it is asked without a limit: a reply ends where the context does.

        Raises:
            EndpointError: none came.
        """
        try:
            return self.post("chat/completions", body)
        except ContextExceeded:
            if "max_tokens" not in body:
                raise
            unlimited = {key: value for key, value in body.items() if key != "max_tokens"}
            return self.post("chat/completions", unlimited)

    def post(self, name: str, body: Mapping[str, Any]) -> bytes:
        """The answer to a request: `post("chat/completions", {"messages": [...]})`.

        Raises:
            EndpointError: none came.
        """
        return self.send(name, {"model": self.model, **body})

    @property
    def root(self) -> Endpoint:
        """The server itself, which has more paths than the API."""
        return replace(self, url=self.url.rstrip("/").removesuffix("/v1"))

    def send(self, name: str, body: Mapping[str, Any]) -> bytes:
        """The answer to exactly this body.

        Raises:
            EndpointError: none came.
        """
        for attempt in range(self.retries + 1):
            try:
                return self._ask(name, body)
            except Transient as error:
                if attempt == self.retries:
                    raise EndpointError(f"{error}, {attempt + 1} times") from error
                wait = DELAY * 2**attempt if error.after is None else error.after
                time.sleep(min(wait, LONGEST))
        raise AssertionError

    def events(self, name: str, body: Mapping[str, Any]) -> Iterator[Any]:
        """The JSON of a stream of server-sent events, which comes to its end. `timeout` is for
        each line here.

        Raises:
            EndpointError: no answer came, or not to its end.
        """
        asked = {"model": self.model, **body, "stream": True}
        with self._opened(name, asked) as response:
            while line := response.readline(LARGEST):
                field, _, data = line.partition(b":")
                if field != b"data":
                    continue
                if data.strip() == b"[DONE]":
                    return
                yield _event(data)
        raise EndpointError(f"{self.url} broke off before the answer was complete")

    def names(self) -> list[str]:
        """The models that the server has.

        Raises:
            EndpointError: it has none, or does not say.
        """
        return list(self.contexts())

    def contexts(self) -> dict[str, int | None]:
        """The models that the server has, with the length of their context where it says so.

        Raises:
            EndpointError: it has none, or does not say.
        """
        try:
            cards = json.loads(self._ask("models", None))["data"]
            names = {str(one["id"]): one.get("max_model_len") for one in cards}
        except (ValueError, LookupError, TypeError, AttributeError):
            names = {}
        if not names:
            raise EndpointError(f"{self.url} does not name its models")
        return names

    def _ask(self, name: str, body: Mapping[str, Any] | None) -> bytes:
        """The answer to a request; without a body, to GET."""
        deadline = time.monotonic() + self.timeout
        with self._opened(name, body) as response:
            return _read(response, deadline)

    @contextmanager
    def _opened(self, name: str, body: Mapping[str, Any] | None) -> Iterator[HTTPResponse]:
        """The response to a request; errors of reading it are ours too."""
        headers = {"Content-Type": "application/json"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        url = f"{self.url.rstrip('/')}/{name}"
        sent = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, sent, headers)
        try:
            with OPENER.open(request, timeout=self.timeout) as response:
                yield response
        except HTTPError as error:
            with error:
                raise self._refused(error) from None
        except TimeoutError:
            raise Transient(f"{self.url} gave no answer within {self.timeout:g} s") from None
        except (OSError, HTTPException) as error:
            reason = error.reason if isinstance(error, URLError) else error
            if isinstance(reason, TimeoutError):
                reason = f"no connection within {self.timeout:g} s"
            raise Transient(f"{self.url} cannot be reached ({reason})") from None

    def _refused(self, error: HTTPError) -> EndpointError:
        what = f"{self.url} answered HTTP {error.code} {error.reason}"
        if error.code in AGAIN or error.code >= 500:
            after = error.headers.get("Retry-After", "")
            return Transient(what, float(after) if after.isdecimal() else None, error.code)
        try:
            body = error.read(LARGEST)
        except (OSError, HTTPException):
            return EndpointError(what)
        kind = ContextExceeded if TOO_LONG.search(body) else EndpointError
        try:
            found = json.loads(body)
            said = found.get("error", found)["message"]  # older versions of vLLM have no `error`
        except (ValueError, KeyError, TypeError, AttributeError):
            return kind(what)
        return kind(f"{what}: {str(said)[:SHOWN]}")


def endpoint_at(address: str, timeout: float, key: str | None) -> Endpoint:
    """Of a model of a server: http://host:port#MODEL, by default its first one. A URL without a
    path gets that of OpenAI's API, /v1.

    Raises:
        SettingError: this is no address, or the server does not answer.
    """
    url, _, name = address.partition("#")
    try:
        check_address(url, None)
        if url.rstrip("/").count("/") == 2:
            url = f"{url.rstrip('/')}/v1"
        endpoint = Endpoint(url, name, timeout, 0, key)
        return endpoint if name else replace(endpoint, model=endpoint.names()[0])
    except (ValueError, EndpointError) as error:
        raise SettingError(f"model: {error}") from None


def ask_each(ask: Callable[[T], R], asked: Sequence[T], concurrent: int) -> list[R]:
    """The answer to each, in order. After an error nothing further is asked.

    concurrent: requests at the same time.
    """
    failed = threading.Event()

    def ask_one(one: T) -> R:
        if failed.is_set():  # the pool may hand out more before it is shut down
            raise CancelledError
        try:
            return ask(one)
        except BaseException:  # Ctrl-C too
            failed.set()
            raise

    with ThreadPoolExecutor(concurrent) as pool:
        try:
            return list(pool.map(ask_one, asked))
        except BaseException:
            failed.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _read(response: HTTPResponse, deadline: float) -> bytes:
    """The body; the timeout of a socket alone would let a server send a byte now and then."""
    found = b""
    while part := response.read1(1 << 16):
        found += part
        if time.monotonic() > deadline:
            raise TimeoutError
        if len(found) > LARGEST:
            raise EndpointError(f"an answer is longer than {LARGEST:,} bytes")
    return found


def _event(data: bytes) -> Any:
    try:
        event = json.loads(data)
        failed = event.get("error")
    except (ValueError, AttributeError):
        raise EndpointError("an event of the answer is not a JSON object") from None
    if failed:
        raise EndpointError(str(failed.get("message") if isinstance(failed, dict) else failed))
    return event


def _text_of(body: bytes) -> str:
    try:
        text = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        raise EndpointError("an answer is not a chat completion") from None
    if not isinstance(text, str):
        raise EndpointError("an answer has no text")
    return text
