"""Dumps of MediaWiki (Wikipedia and others): a document for each article."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, BinaryIO
from xml.etree.ElementTree import Element, ParseError, iterparse

from culm.config import SettingError
from culm.files import POINTER
from culm.source.compressed import UNREADABLE, check_compression, opened, start_of, unreadable
from culm.source.reading import Reading
from culm.source.record import LeftOut, Record, Unreadable, place_of
from culm.source.remote import File
from culm.source.text import documents

ROOT = "mediawiki"
HEAD = 1 << 12  # bytes in which the first element begins
START = re.compile(rb"\s*(<\?xml[^>]*\?>\s*)?(<!--.*?-->\s*)*<([\w:.-]+)", re.DOTALL)
REDIRECTS = re.compile(r"\s*#redirect\b", re.IGNORECASE)
COMMENT = re.compile(r"<!--.*?(-->|$)", re.DOTALL)  # in which tags need no end
# What stands in the middle of a sentence without being part of it, or is a list of files.
ASIDE = re.compile(
    r"<(ref|gallery|imagemap|timeline)\b([^>]*/>|((?!<\1\b).)*?</\1\s*>)", re.IGNORECASE | re.DOTALL
)
HEADING = re.compile(r"(={1,6})\s*(.*?)\s*=+\s*")
HOLLOW = re.compile(r" \([ ,;]*\)")
MARKS = re.compile(r"[*#:;]+\s*")
FILES, CATEGORIES = "6", "14"  # numbers of namespaces, whose names depend on the language
LEFT_OUT = "wiki pages are {} and are left out"
REDIRECT = LEFT_OUT.format("redirects")
OTHER = LEFT_OUT.format("in other namespaces than articles (talk, templates, files and others)")
MODEL = LEFT_OUT.format("not written in wikitext")
EMPTY = LEFT_OUT.format("without text, once templates and tables are removed,")


def records(file: File, reading: Reading) -> Iterator[Record]:
    """The newest revision of each article as plain text, which begins with its title.

    Raises:
        SettingError: it is XML of something else, or the library is not installed.
        Unreadable: the XML is damaged or truncated.
    """
    try:
        import wikitextparser
    except ImportError:
        raise SettingError(f"{file}: wikitext needs the extra: pip install 'culm[files]'") from None
    last = "its start"
    try:
        with opened(file) as content:
            _check_root(file, content)
            for page, names in _pages(content):
                title, place = _text(page, "title"), f"{file}: page {_text(page, 'title')!r}"
                last = f"the page {title!r}"
                if (why := _left_out(page)) is not None:
                    yield Record({}, place, why, failure=LeftOut)
                    continue
                try:
                    plain = plain_text(_written(page), names, wikitextparser)
                except Exception as error:  # of odd pages the library raises whatever happens
                    reason = str(error).strip() or type(error).__name__
                    yield Record({}, place, f"{place}: not readable as wikitext: {reason}")
                    continue
                if not plain:
                    yield Record({}, place, EMPTY, failure=LeftOut)
                    continue
                yield from documents([f"{title}\n\n{plain}\n"], reading, place)
    except ParseError as error:
        place = place_of(file, error.position[0])
        raise Unreadable(f"{place}: damaged or truncated XML after {last} ({error})") from None
    except UNREADABLE as error:
        raise unreadable(file, error) from None


def is_dump(file: File) -> bool:
    """Whether a file is a dump, or cannot be read, which reading it says."""
    try:
        with opened(file) as content:
            head = start_of(content, HEAD)
    except UNREADABLE:
        return True
    return not head.strip() or head.startswith(POINTER) or root_of(head) == ROOT


def root_of(head: bytes) -> str | None:
    """The name of the first element of XML; None if it is not XML."""
    found = START.match(head.removeprefix(b"\xef\xbb\xbf"))
    return None if found is None else found[3].decode()


def _check_root(file: File, content: BinaryIO) -> None:
    head = start_of(content, HEAD)
    check_compression(file, head)
    if head.strip() and (root := root_of(head)) != ROOT:
        seen = "no XML" if root is None else f"XML of <{root}>"
        raise SettingError(f"{file}: {seen}; of XML, dumps of MediaWiki (<{ROOT}>) are read")


def _pages(content: BinaryIO) -> Iterator[tuple[Element, frozenset[str]]]:
    """Each page, with the names of namespaces; one is in memory, in its last revision."""
    names, within = frozenset[str](), list[Element]()
    for event, element in iterparse(content, ("start", "end")):
        if event == "start":
            within.append(element)
            continue
        within.pop()
        tag = _tag(element)
        if tag == "siteinfo":
            names = _names(element)
        if tag == "page":
            yield element, names
        if tag == "revision":  # of a complete history only the last is kept
            for older in _children(within[-1], "revision")[:-1]:
                within[-1].remove(older)
        if tag in ("page", "siteinfo"):
            within[-1].clear()


def _written(page: Element) -> str:
    return _text(next(iter(_children(page, "revision")), page), "text")


def _left_out(page: Element) -> str | None:
    """Why nothing is learned from a page."""
    if (_text(page, "ns") or "0") != "0":
        return OTHER
    if _children(page, "redirect") or REDIRECTS.match(_written(page)):
        return REDIRECT
    revision = next(iter(_children(page, "revision")), page)
    return None if _text(revision, "model") in ("", "wikitext") else MODEL


def plain_text(wikitext: str, names: frozenset[str], library: Any) -> str:
    """Without templates, tables, references, files and categories. names: of those namespaces."""
    parsed = library.parse(ASIDE.sub("", COMMENT.sub("", wikitext)))
    for link in reversed(parsed.wikilinks):  # the inner ones first: captions hold links
        space, colon, _ = link.target.partition(":")
        if colon and space.strip().lower() in names:
            del link[:]
    for table in reversed(parsed.tables):
        del table[:]
    return "\n".join(_filled(parsed.plain_text().splitlines())).strip()


def _filled(lines: list[str]) -> list[str]:
    """Without what has nothing in it where a template was: entries of lists, brackets, sections."""
    kept: list[str] = []  # from the last to the first
    level = 0  # of the section that follows what was kept last; 0 at the end of the page
    for line in reversed(lines):
        heading = HEADING.fullmatch(line)
        text = HOLLOW.sub("", line).rstrip() if heading is None else heading[2]
        if heading is not None and 0 <= level <= len(heading[1]):
            continue
        if heading is not None:
            level = len(heading[1])
        elif MARKS.fullmatch(text):
            continue
        elif text:
            level = -1  # there is text under the heading above
        if text or (kept and kept[-1]):
            kept.append(text)
    return kept[::-1]


def _names(siteinfo: Element) -> frozenset[str]:
    """Names of the namespaces of files and categories, in English and the language of the wiki."""
    found = {"file", "image", "category"}
    for element in siteinfo.iter():
        if _tag(element) == "namespace" and element.get("key") in (FILES, CATEGORIES):
            found.add((element.text or "").lower())
    return frozenset(found - {""})


def _tag(element: Element) -> str:
    """Without the version of the format, which is part of a name in XML."""
    return element.tag.rpartition("}")[2]


def _children(element: Element, tag: str) -> list[Element]:
    return [child for child in element if _tag(child) == tag]


def _text(element: Element, tag: str) -> str:
    return next((child.text or "" for child in _children(element, tag)), "")
