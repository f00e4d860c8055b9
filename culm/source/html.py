"""The text of HTML pages, without what surrounds it: menus, scripts, forms."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from typing import Any

from culm.config import SettingError
from culm.source.compressed import UNREADABLE, check_compression, opened, unreadable
from culm.source.reading import Reading
from culm.source.record import LeftOut, Record, Unreadable
from culm.source.remote import File
from culm.source.text import UTF_16, documents, not_utf8

LARGEST = 1 << 26  # bytes: a page is parsed at once, with ten times its size in memory
AROUND = (
    "script, style, noscript, template, svg, iframe, object, nav, aside, form, button, select, "
    "dialog, [hidden], [aria-hidden=true], [role=navigation], [role=banner], [role=contentinfo], "
    "[role=search], body > header, body > footer"
)
MAIN = ("main", "[role=main]", "article")  # what a page says that its content is
PARAGRAPHS = frozenset(
    "address article blockquote dl details div figure footer h1 h2 h3 h4 h5 h6 header hr main ol p "
    "pre section table ul".split()
)
LINES = frozenset("caption dd dt figcaption li summary tr".split())
CELLS = frozenset(("td", "th"))
CHARSET = re.compile(rb"<meta[^>]+charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
START = re.compile(rb"\s*(<!--.*?-->\s*)*(<!doctype\s+html|<html)[\s>]", re.IGNORECASE | re.DOTALL)
HEAD = 1 << 12  # bytes in which a page names its encoding
# Characters that no text has, for white space that stays: in HTML most of it means nothing.
GAP, LINE, BREAK, HARD = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3"
ENDS = re.compile(f"[ {GAP}{LINE}]*[{GAP}{LINE}][ {GAP}{LINE}]*")
EMPTY = "HTML pages hold no text (a script may write it) and are left out"


def records(file: File, reading: Reading) -> Iterator[Record]:
    """The text of a page, a line for each paragraph.

    Raises:
        SettingError: it is too large, or the library is not installed.
    """
    try:
        from selectolax.lexbor import LexborHTMLParser
    except ImportError:
        raise SettingError(f"{file}: HTML needs the extra: pip install 'culm[files]'") from None
    try:
        with opened(file) as content:
            page = content.read(LARGEST + 1)
    except UNREADABLE as error:
        raise unreadable(file, error) from None
    check_compression(file, page[:64])
    if len(page) > LARGEST:
        raise Unreadable(f"{file}: an HTML page of more than {LARGEST >> 20} MB; divide it")
    tree = LexborHTMLParser(_decoded(page, file, reading.invalid))
    text = _text_of(_content_of(tree))
    if not text:
        yield Record({}, str(file), EMPTY, failure=LeftOut)
    yield from documents([text], reading, str(file))


def is_html(head: bytes) -> bool:
    """Whether a file that begins so is a page."""
    return START.match(head.removeprefix(codecs.BOM_UTF8)) is not None


def _decoded(page: bytes, file: File, invalid: str) -> str:
    """As the page says that it is encoded, else as UTF-8."""
    if page.startswith(UTF_16):
        name = "utf-16"
    else:
        named = CHARSET.search(page, 0, HEAD)
        name = "utf-8" if named is None else named[1].decode()
    try:
        return page.decode(name, "replace" if invalid == "replace" else "strict").lstrip("\ufeff")
    except LookupError:
        raise Unreadable(f"{file}: its encoding {name!r} is unknown; save it as UTF-8") from None
    except UnicodeDecodeError as error:
        if codecs.lookup(name).name == "utf-8":
            raise not_utf8(file, error.start) from None
        raise Unreadable(
            f"{file}: byte {error.start:,} is not {name}, which the page says that it is; save it "
            "as UTF-8, or in a run file set data.invalid=replace to read it anyway"
        ) from None


def _content_of(tree: Any) -> Any:
    """The part of a page that is its content, without what surrounds it."""
    for node in tree.css(AROUND):
        node.decompose()
    for selector in MAIN:
        found = tree.css(selector)
        if len(found) == 1:
            return found[0]
    return tree.body


def _text_of(content: Any) -> str:
    """A line for each paragraph, list entry and row of a table."""
    parts: list[str] = []
    open_: list[tuple[Any, str, bool]] = [(content, "", False)]  # node, what ends it, in <pre>
    while open_:
        node, end, kept = open_.pop()
        if node is None:
            parts.append(end)
            continue
        if node.is_text_node:
            text = node.text_content or ""
            parts.append(text.replace(" ", HARD).replace("\n", BREAK) if kept else text)
            continue
        kept = kept or node.tag == "pre"
        gap = GAP if node.tag in PARAGRAPHS else LINE if node.tag in LINES else ""
        parts.append(BREAK if node.tag == "br" else gap)
        open_.append((None, gap or " " * (node.tag in CELLS), False))
        open_ += [(child, "", kept) for child in reversed(list(node.iter(include_text=True)))]
    text = " ".join("".join(parts).split())
    text = ENDS.sub(lambda ends: "\n\n" if GAP in ends[0] else "\n", text)
    return re.sub(f" ?{BREAK} ?", "\n", text).replace(HARD, " ").strip()
