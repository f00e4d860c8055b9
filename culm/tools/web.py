"""Search in the web, by SearXNG, Brave or Google, and open what was found."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from html import unescape
from typing import Any, NamedTuple, Protocol
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request

from culm.address import check_address, key_of
from culm.config import SettingError
from culm.endpoint import OPENER
from culm.tools.documents import page
from culm.tools.fetch import Page, fetch, is_public
from culm.tools.function import ToolError, ToolFunction

FOUND = 5
LARGEST = 1 << 20  # bytes of an answer
BRAVE = "https://api.search.brave.com/res/v1/web/search"
GOOGLE = "https://www.googleapis.com/customsearch/v1"
# None of these takes more than linear time on a page that was written to make it slow.
UNSEEN = re.compile(
    r"<!--.*?(?:-->|\Z)|<(script|style|head|template)\b.*?(?:</\1\s*>|\Z)", re.S | re.I
)
BLOCK = re.compile(r"</?(?:p|div|br|li|tr|h\d|section|article|table|ul|ol|pre)\b[^<>]*>", re.I)
TAG = re.compile(r"<[^<>]*>")


class Hit(NamedTuple):
    title: str
    url: str
    text: str


class SearchEngine(Protocol):
    """A search engine."""

    def request(self, query: str) -> Request: ...

    def hits(self, answer: Any) -> list[Hit]:
        """Of its answer in JSON; KeyError, TypeError or AttributeError if that has another form."""
        ...


@dataclass(frozen=True)
class SearXNG:
    """url: of a server that gives JSON."""

    url: str

    def request(self, query: str) -> Request:
        asked = urlencode({"q": query, "format": "json"})
        return Request(f"{self.url.rstrip('/')}/search?{asked}")

    def hits(self, answer: Any) -> list[Hit]:
        return [
            Hit(one["title"], one["url"], one.get("content") or "") for one in answer["results"]
        ]


@dataclass(frozen=True)
class Brave:
    key: str
    url: str = BRAVE

    def request(self, query: str) -> Request:
        asked = urlencode({"q": query, "count": FOUND})
        headers = {"X-Subscription-Token": self.key, "Accept": "application/json"}
        return Request(f"{self.url}?{asked}", headers=headers)

    def hits(self, answer: Any) -> list[Hit]:
        found = (answer.get("web") or {}).get("results") or []
        return [Hit(one["title"], one["url"], one.get("description") or "") for one in found]


@dataclass(frozen=True)
class Google:
    """place: the id of a programmable search engine (cx)."""

    key: str
    place: str
    url: str = GOOGLE

    def request(self, query: str) -> Request:
        asked = {"q": query, "key": self.key, "cx": self.place, "num": FOUND}
        return Request(f"{self.url}?{urlencode(asked)}")

    def hits(self, answer: Any) -> list[Hit]:
        found = answer.get("items") or []
        return [Hit(one["title"], one["link"], one.get("snippet") or "") for one in found]


def engine_of(setting: str) -> SearchEngine:
    """An engine from `searxng=URL`, `brave` or `google=ID`; keys come from the environment
    variables BRAVE_API_KEY and GOOGLE_API_KEY.

    Raises:
        SettingError: it is not one of these, or has no key.
    """
    name, _, value = setting.partition("=")
    if name == "searxng" and value:
        try:
            check_address(value, None)
        except ValueError as error:
            raise SettingError(f"web: {error}") from None
        return SearXNG(value)
    if name == "brave" and not value:
        return Brave(key_of("BRAVE_API_KEY", "web"))
    if name == "google" and value:
        return Google(key_of("GOOGLE_API_KEY", "web"), value)
    raise SettingError("web: give searxng=URL, brave, or google=ID of a search engine")


def web_functions(
    engine: SearchEngine, allowed: Callable[[str], bool] = is_public
) -> Iterator[ToolFunction]:
    """`web_search` and `open_url`. allowed: as in `fetch`."""
    yield WebSearch(engine)
    yield OpenURL(allowed)


class WebSearch:
    name = "web_search"
    description = "Search in the web; gives titles, URLs and a part of the text of each page."
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {"query": {"type": "string", "minLength": 1, "maxLength": 400}},
        "required": ["query"],
        "additionalProperties": False,
    }

    def __init__(self, engine: SearchEngine) -> None:
        self._engine = engine

    def run(self, arguments: Mapping[str, Any], seconds: float) -> str:
        try:
            request = self._engine.request(str(arguments["query"]))
            with OPENER.open(request, timeout=seconds) as response:
                found = self._engine.hits(json.loads(response.read(LARGEST)))[:FOUND]
        except HTTPError as error:  # its URL may have the key
            raise ToolError(f"the search engine answered {error.code}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ToolError("the search engine gave no results in its form") from None
        except OSError:
            raise ToolError("the search engine cannot be reached") from None
        shown = [f"{_bare(title)}\n{url}\n{_bare(text)}" for title, url, text in found]
        return "\n\n".join(shown) or "nothing was found"


class OpenURL:
    name = "open_url"
    description = "The text of a web page."
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {
            "url": {"type": "string", "maxLength": 2000},
            "start": {"type": "integer", "minimum": 0, "description": "First character, from 0."},
        },
        "required": ["url"],
        "additionalProperties": False,
    }

    def __init__(self, allowed: Callable[[str], bool] = is_public) -> None:
        self._allowed = allowed

    def run(self, arguments: Mapping[str, Any], seconds: float) -> str:
        found = fetch(str(arguments["url"]), seconds, self._allowed)
        return f"{found.url}\n\n{page(_read(found), int(arguments.get('start', 0)))}"


def _read(found: Page) -> str:
    """The text of a page, without the marks of HTML."""
    if "html" not in found.kind:
        return found.text
    text = BLOCK.sub("\n", UNSEEN.sub(" ", found.text))
    lines = (" ".join(line.split()) for line in unescape(TAG.sub(" ", text)).splitlines())
    return "\n".join(line for line in lines if line)


def _bare(text: str) -> str:
    return " ".join(unescape(TAG.sub("", text)).split())
