"""Dumps of MediaWiki: which pages are read, as what text, and what is counted."""

import bz2
import gzip
import json
import re
import tracemalloc
from collections import Counter
from itertools import islice

import pytest

from culm.config import SettingError
from culm.data.format.document import DocumentFormat
from culm.data.manifest import Manifest
from culm.data.notes import DAMAGED
from culm.data.prepare import prepare
from culm.source import Limited, open_source, wiki
from culm.source.source import LeftOutOnly, found_in

pytest.importorskip("wikitextparser")

HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="de">
<siteinfo><namespaces><namespace key="0" /><namespace key="6">Datei</namespace>
<namespace key="14">Kategorie</namespace></namespaces></siteinfo>
"""
ARTICLE = """<!-- Use <ref> here. -->
'''Rhodes''' is an [[island|isle]] of [[Greece]].<ref name="a">A book.</ref> It is
large.<ref name="a" />

{{Infobox|size=3}}
[[Datei:map.png|thumb|A map of [[Rhodes]]]]
== History ==
* {{cite}}
* Founded () in 408.
=== Empty ===
== Empty too ==
== Now ==
{| class="wikitable"
| a || b
|}
It is &amp;nbsp;old.
[[Kategorie:Islands]]
"""


def page(title, text, namespace=0, more="", model="wikitext"):
    return (
        f"<page><title>{title}</title><ns>{namespace}</ns>{more}<revision>"
        f"<model>{model}</model><text>{text}</text></revision></page>\n"
    )


def escaped(text):
    return text.replace("&amp;", "&").replace("&", "&amp;").replace("<", "&lt;")


def dump(*pages):
    return HEAD + "".join(pages) + "</mediawiki>\n"


def counted(path, **options):
    skipped = LeftOutOnly()
    source = open_source(path, **options)
    return [one for one, _ in found_in(source, lambda one: iter([one]), skipped)], skipped.counts


def test_an_article_becomes_plain_text(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text(dump(page("Rhodes", escaped(ARTICLE))))
    [record], counts = counted(path)
    text = record["text"].replace("\xa0", " ")
    assert text.startswith("Rhodes\n\nRhodes is an isle of Greece. It is\nlarge.\n\n")
    assert text.endswith("\nHistory\n* Founded in 408.\nNow\n\nIt is  old.\n")
    for gone in (
        "Infobox",
        "map",
        "wikitable",
        "b\n",
        "Empty",
        "Kategorie",
        "book",
        "[",
        "{",
        "'''",
    ):
        assert gone not in text
    assert record.place == f"{path}: page 'Rhodes'"
    assert not counts


def test_pages_that_are_no_articles_are_counted(tmp_path):
    path = tmp_path / "a.xml-p1p9.bz2"  # as the parts of Wikipedia are named
    pages = [
        page("A", "#REDIRECT [[B]]"),
        page("A2", "", more='<redirect title="B" />'),
        page("B", "Text."),
        page("Talk:B", "Chatter.", namespace=1),
        page("Code", "x = 1", model="Scribunto"),
        page("Hollow", "{{list}}"),
    ]
    path.write_bytes(bz2.compress(dump(*pages).encode()))
    for given in (path, tmp_path):
        found, counts = counted(given)
        assert [record["text"] for record in found] == ["B\n\nText.\n"]
        assert counts == {wiki.REDIRECT: 2, wiki.OTHER: 1, wiki.MODEL: 1, wiki.EMPTY: 1}
    limited = Limited(open_source(path), DocumentFormat().texts, 1, None)
    skipped = LeftOutOnly()
    found = [one for one, _ in found_in(limited, lambda one: iter([one]), skipped)]
    assert [record["text"] for record in found] == ["B\n\nText.\n"]


def test_of_a_history_the_last_revision_is_read(tmp_path):
    path = tmp_path / "a.xml"
    revisions = "".join(f"<revision><text>Version {n}.</text></revision>" for n in range(5))
    path.write_text(dump(f"<page><title>A</title><ns>0</ns>{revisions}</page>"))
    assert counted(path)[0] == [{"text": "A\n\nVersion 4.\n"}]


def test_a_dump_streams(tmp_path):
    path = tmp_path / "a.xml"
    pages = 100
    with path.open("w") as file:
        file.write(HEAD)
        for number in range(pages):
            file.write(page(f"Page {number}", "word " * 20_000, namespace=number % 2))
        file.write("</mediawiki>")
    tracemalloc.start()
    found, counts = 0, LeftOutOnly()
    for _ in found_in(open_source(path), lambda one: iter([one]), counts):
        found += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == pages // 2
    assert peak < path.stat().st_size / 4


def test_truncated_xml_is_refused_or_counted(tokenizer, tmp_path):
    path = tmp_path / "a.xml"
    whole = dump(page("A", "Text of A."), page("B", "Text of B."))
    path.write_text(whole[: whole.index("of B")])
    with pytest.raises(SettingError, match=r"a\.xml: line 5: damaged or truncated XML aft"):
        counted(path)
    source = open_source(path, invalid="skip")
    prepare(source, DocumentFormat(), tokenizer, tmp_path / "out", held_out=0, invalid="skip")
    manifest = Manifest.read(tmp_path / "out")
    assert manifest.notes == {DAMAGED: 1}
    assert manifest.documents == 1


def test_other_xml_is_refused(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text('<?xml version="1.0"?>\n<!-- x -->\n<feed xmlns="x"><a/></feed>')
    with pytest.raises(SettingError, match=r"a\.xml: XML of <feed>; of XML, dumps of MediaWiki"):
        counted(path)
    (tmp_path / "b.txt").write_text("text")
    assert open_source(tmp_path).skipped == (path,)  # in a folder it is counted


def words(text):
    return Counter(re.findall(r"\w+", text))


def test_a_dump_of_wikipedia(shared):
    """The words of each article are those that another program found in it."""
    [path] = shared("wikipedia_xml").glob("*.bz2")
    with gzip.open(shared("wikipedia_xml") / "wiki_articles.jsonl.gz") as lines:
        known = {row["title"]: row["text"] for row in map(json.loads, lines)}
    skipped = LeftOutOnly()
    found = found_in(open_source(path), lambda one: iter([one]), skipped)
    texts = [record["text"] for record, _ in islice(found, 8)]
    assert skipped.counts[wiki.REDIRECT] > 5
    compared = 0
    for text in texts:
        title = text.partition("\n")[0]
        for mark in ("[[", "<ref", "{|", "thumb|", "Category:", "File:", "\n=="):
            assert mark not in text, title
        if title in known:
            other, own = words(known[title]), words(text)
            assert (other & own).total() > 0.99 * other.total(), title
            assert (other & own).total() > 0.9 * own.total(), title
            compared += 1
    assert compared > 5
