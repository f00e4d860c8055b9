"""Read a web page for a model, which may ask for any URL: only public servers are reached.

The name of a server is resolved once, all its addresses are checked, and the connection goes to one
of these, so that no later answer of the name server can lead inside (DNS rebinding). Each redirect
is checked in the same way.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from culm.tools.function import ToolError

LARGEST = 1 << 20  # bytes of a page
REDIRECTS = 5
TEXTUAL = ("text/", "application/json", "application/xml", "application/xhtml+xml")
TRANSLATED = ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")  # hold an IPv4 address
AGENT = "culm-agent"


@dataclass(frozen=True)
class Page:
    url: str
    kind: str  # of its content: text/html
    text: str


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the internet: not private, loopback, link-local (where
    clouds have their metadata), reserved, or an IPv6 form of such an IPv4 address."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        elif any(found in ipaddress.ip_network(one) for one in TRANSLATED):
            return False
    return found.is_global and not (found.is_multicast or found.is_reserved)


def fetch(url: str, seconds: float, allowed: Callable[[str], bool] = is_public) -> Page:
    """The text of a page. allowed: whether a connection to an address may be made.

    Raises:
        ToolError: the URL is refused, or gives no text.
    """
    end = time.monotonic() + seconds
    for _ in range(REDIRECTS + 1):
        found = _request(url, end, allowed)
        if isinstance(found, Page):
            return found
        url = urljoin(url, found)
    raise ToolError(f"more than {REDIRECTS} redirects")


def _request(url: str, end: float, allowed: Callable[[str], bool]) -> Page | str:
    """The page, or the URL of a redirect."""
    parts, port = _checked(url)
    host = str(parts.hostname)
    connection = _Pinned(host, port, _address(host, port, allowed), parts.scheme == "https", end)
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    query = f"?{quote(parts.query, safe='/%:@!$&()*+,;=~-._?')}" if parts.query else ""
    headers = {"User-Agent": AGENT, "Accept": "text/*", "Accept-Encoding": "identity"}
    try:
        connection.request("GET", path + query, headers=headers)
        response = connection.getresponse()
        location = response.getheader("Location")
        if 300 <= response.status < 400 and location:
            return location
        if response.status != 200:
            raise ToolError(f"the server answered {response.status}")
        return Page(url, *_text(response, end))
    except TimeoutError:
        raise ToolError("the server took too long") from None
    except (OSError, HTTPException, ValueError) as error:
        raise ToolError(f"the page cannot be read: {type(error).__name__}") from None
    finally:
        connection.close()


def _checked(url: str) -> tuple[SplitResult, int]:
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise ToolError("this is no URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ToolError("only URLs of http and https can be opened")
    if parts.username or parts.password:
        raise ToolError("a URL with a user is not opened")
    return parts, port


def _address(host: str, port: int, allowed: Callable[[str], bool]) -> str:
    """One address of a server, all of which must be allowed."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise ToolError(f"there is no server {host[:100]!r}") from None
    addresses: Sequence[str] = [str(one[4][0]) for one in found]
    if not addresses or not all(map(allowed, addresses)):
        raise ToolError("this address is not on the public internet, so it is not opened")
    return addresses[0]


class _Pinned(HTTPConnection):
    """A connection to one address under the name of a server, until `end`."""

    def __init__(self, host: str, port: int, address: str, secure: bool, end: float) -> None:
        super().__init__(host, port)
        self.default_port = 443 if secure else 80  # so that the header `Host` is as usual
        self._address, self._secure, self._end = address, secure, end

    def connect(self) -> None:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.sock = socket.create_connection((self._address, self.port), left)
        if self._secure:
            context = ssl.create_default_context()
            self.sock = context.wrap_socket(self.sock, server_hostname=self.host)


def _text(response: HTTPResponse, end: float) -> tuple[str, str]:
    """The kind and the text of an answer."""
    kind = response.headers.get_content_type()
    if not kind.startswith(TEXTUAL):
        raise ToolError(f"the page is no text: {kind[:60]}")
    found = b""
    while part := response.read1(1 << 16):
        found += part
        if time.monotonic() > end:
            raise TimeoutError
        if len(found) > LARGEST:
            raise ToolError(f"the page is larger than {LARGEST >> 20} MB")
    charset = response.headers.get_content_charset() or "utf-8"
    try:
        return kind, found.decode(charset, "replace")
    except LookupError:
        return kind, found.decode("utf-8", "replace")
