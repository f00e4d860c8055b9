"""Each kind of file, compressed and not: what is read, what is counted, what is refused."""

import bz2
import gzip
import io
import sys
import tracemalloc

import pytest

from culm.config import SettingError
from culm.data.format.document import DocumentFormat
from culm.data.format.label import LabelFormat
from culm.data.manifest import Manifest
from culm.data.notes import DAMAGED, UNREADABLE
from culm.data.prepare import prepare
from culm.source import open_source
from culm.source.source import LeftOutOnly, found_in
from culm.source.table import LONGEST

JSON = b'{"text": "one"}\n{"text": "two"}\n'


def zstd(data, frames=1):
    library = pytest.importorskip("zstandard")
    cut = -(-len(data) // frames)
    parts = (data[start : start + cut] for start in range(0, len(data), cut))
    return b"".join(library.ZstdCompressor().compress(part) for part in parts)


COMPRESS = {".gz": gzip.compress, ".bz2": lambda data: bz2.compress(data, 1), ".zst": zstd}


def read(path, **options):
    skipped = LeftOutOnly()
    return [record for record, _ in found_in(open_source(path, **options), iter_of, skipped)]


def iter_of(record):
    return iter([record])


def counted(path, **options):
    skipped = LeftOutOnly()
    found = [record for record, _ in found_in(open_source(path, **options), iter_of, skipped)]
    return found, skipped.counts


@pytest.mark.parametrize("end", COMPRESS)
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"one\ntwo\n"),
        ("a.jsonl", JSON),
        ("a.json", b'["one", "two"]'),
        ("a.csv", b"text\none\ntwo\n"),
        ("a.tsv", b"text\none\ntwo\n"),
        ("a.html", b"<html><p>one<p>two</html>"),
    ],
)
def test_every_kind_is_read_compressed(name, content, end, tmp_path):
    if name == "a.html":
        pytest.importorskip("selectolax")
    path = tmp_path / (name + end)
    path.write_bytes(COMPRESS[end](content))
    texts = [record["text"] for record in read(path, split="lines")]
    assert [text for text in texts if text] == ["one", "two"]
    assert open_source(path).size is None
    assert read(tmp_path, split="lines") == read(path, split="lines")


@pytest.mark.parametrize("end", COMPRESS)
def test_a_truncated_file_is_refused_or_counted(end, tokenizer, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    lines = b"".join(b'{"text": "number %d %d"}\n' % (n, n * n) for n in range(20_000))
    whole = COMPRESS[end](lines)
    (folder / f"a.jsonl{end}").write_bytes(whole[: len(whole) // 2])
    (folder / "b.txt").write_text("after it")
    with pytest.raises(SettingError, match=rf"a\.jsonl{end}: cannot be read: .*(trunc|marker)"):
        read(folder)
    prepare(
        open_source(folder, invalid="skip"), DocumentFormat(), tokenizer, tmp_path / "out",
        held_out=0, invalid="skip",
    )  # fmt: skip
    manifest = Manifest.read(tmp_path / "out")
    assert manifest.notes[DAMAGED] == 1
    assert 1 < manifest.documents < 20_000


def test_several_frames_are_one_file(tmp_path):
    path = tmp_path / "a.txt.zst"
    path.write_bytes(zstd(b"word " * 100_000, frames=7))
    assert sum(len(record["text"]) for record in read(path)) == 500_000
    path.write_bytes(b"no zstd at all")
    with pytest.raises(SettingError, match=r"a\.txt\.zst: cannot be read: .* damaged"):
        read(path)


def test_a_compressed_file_streams(tmp_path):
    path = tmp_path / "a.txt.zst"
    path.write_bytes(zstd(b"".join(b"%d " % (n * n) for n in range(1_500_000))))
    tracemalloc.start()
    size = sum(len(record["text"]) for record in open_source(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size > 15_000_000
    assert peak < size


@pytest.mark.parametrize("name", ["a.parquet.gz", "a.pdf.zst"])
def test_what_is_read_from_its_end_is_not_compressed(name, tmp_path):
    pytest.importorskip("pyarrow")
    pytest.importorskip("pypdf")
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(SettingError, match=rf"{name}: compressed with .* decompress it"):
        read(tmp_path / name)


def test_a_table_gives_its_columns(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('\ufefftext, label\n"one, ""two""\nthree",1\n\nfour,true\n', encoding="utf-8")
    rows = read(path)
    assert rows == [{"text": 'one, "two"\nthree', "label": "1"}, {"text": "four", "label": "true"}]
    assert [row.place for row in rows] == [f"{path}: line 3", f"{path}: line 5"]
    assert [LabelFormat().numbers(row) for row in rows] == [[(1.0,)], [(1.0,)]]
    path.write_text("text;label\na, b;nan\n")
    with pytest.raises(ValueError, match="no number in 'label'"):
        LabelFormat().numbers(read(path)[0])
    (tmp_path / "a.tsv").write_text("text\tlabel\na, b\t0\n")
    assert read(tmp_path / "a.tsv") == [{"text": "a, b", "label": "0"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text,label\na,1\nb\n", r"line 3: the row has 1 values, and the header 2 names"),
        (b"text,text\na,1\n", r"a\.csv: it has the column 'text' twice"),
        (b"text,,c\na,1,2\n", r"a\.csv: column 2 has no name in the first row"),
        (b'text\n"a\nb\n', r"line 3: not readable as a table: unexpected end"),
        (b"text\na\n\xff\n", r"line 3: byte 7 is not UTF-8"),
        ("text\na\n".encode("utf-16"), r"a\.csv: UTF-16 text"),
    ],
)
def test_a_damaged_table_is_named(content, message, tmp_path):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(SettingError, match=message):
        read(tmp_path / "a.csv")


def test_rows_that_cannot_be_read_are_counted(tokenizer, tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,n\none,1\ntwo\n\xffthree,3\nfour,4\n")
    source = open_source(path, invalid="skip")
    prepare(source, DocumentFormat(), tokenizer, tmp_path / "out", held_out=0, invalid="skip")
    manifest = Manifest.read(tmp_path / "out")
    assert manifest.notes[UNREADABLE] == 2
    assert manifest.documents == 2


def test_a_quote_that_is_never_closed_does_not_fill_the_memory(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'text\n"' + b"word\n" * (4 * LONGEST // 5))
    tracemalloc.start()
    with pytest.raises(SettingError, match=r"not readable as a table: field larger than"):
        read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 4 * LONGEST  # characters of up to 4 bytes


PAGE = b"""<!DOCTYPE html><html><head><title>T</title><style>p {}</style></head><body>
<nav><a href=/>Home</a></nav><header>Site</header>
<main><h1>A  title</h1><p>One <b>bold</b>
line.</p><ul><li>first</li><li>second</li></ul>
<pre>def f():
    return 1</pre><table><tr><td>a</td><td>b</td></tr></table>
<script>var x;</script><p hidden>no</p>end<br>of it</main><footer>2026</footer></body></html>"""


def test_a_page_gives_its_content(tmp_path):
    pytest.importorskip("selectolax")
    path = tmp_path / "a.html"
    path.write_bytes(PAGE)
    assert read(path)[0]["text"] == (
        "A title\n\nOne bold line.\n\nfirst\nsecond\n\ndef f():\n    return 1\n\na b\n\nend\nof it"
    )
    (tmp_path / "page").write_bytes(b"<!-- saved -->\n" + PAGE)  # known by its content
    assert read(tmp_path / "page")[0]["text"] == read(path)[0]["text"]
    path.write_bytes("<meta charset=latin-1><p>caf\xe9".encode("latin-1"))
    assert read(path)[0]["text"] == "caf\xe9"
    path.write_bytes(b"<p>" * 5000 + b"deep")
    assert read(path)[0]["text"] == "deep"
    path.write_bytes(b"<html><script>write()</script></html>")
    found, counts = counted(path)
    assert not found
    assert list(counts.values()) == [1]
    for content, message in [
        (b"<p>\xff", "byte 3 is not UTF-8"),
        (b"<meta charset=klingon><p>a", "its encoding 'klingon' is unknown"),
        (b"<meta charset=ascii><p>\xff", "byte 23 is not ascii, which the page says"),
    ]:
        path.write_bytes(content)
        with pytest.raises(SettingError, match=rf"a\.html: .*{message}"):
            read(path)


def pdf(*pages, password=None):
    """A document with a line of text on each page."""
    library = pytest.importorskip("pypdf")
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = library.PdfWriter()
    for text in pages:
        page = writer.add_blank_page(width=400, height=400)
        font = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}
        named = DictionaryObject({NameObject(k): NameObject(v) for k, v in font.items()})
        fonts = DictionaryObject({NameObject("/F1"): writer._add_object(named)})
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
        stream = DecodedStreamObject()
        stream.set_data(f"BT /F1 12 Tf 20 200 Td ({text}) Tj ET".encode() if text else b"")
        page[NameObject("/Contents")] = writer._add_object(stream)
    if password is not None:
        writer.encrypt(password, algorithm="RC4-128")
    held = io.BytesIO()
    writer.write(held)
    return held.getvalue()


def test_a_pdf_gives_the_text_of_its_pages(tmp_path):
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf("First page", "", "Third page"))
    found, counts = counted(path)
    assert found == [{"text": "First page\n\nThird page\n\n"}]
    assert [(n, phrase.split()[0]) for phrase, n in counts.items()] == [(1, "pages")]
    texts = [record["text"] for record in read(path, split="paragraphs")]
    assert texts == ["First page", "Third page"]
    (tmp_path / "letter").write_bytes(path.read_bytes())  # known by its content
    assert read(tmp_path / "letter") == read(path)


def test_a_pdf_that_cannot_be_read_is_named(tmp_path):
    path, whole = tmp_path / "a.pdf", pdf("First page", "Second")
    for content, message in [
        (b"%PDF-1.7 nothing", "cannot be read as PDF"),
        (whole[:200], "cannot be read as PDF"),
    ]:
        path.write_bytes(content)
        with pytest.raises(SettingError, match=rf"a\.pdf: {message}"):
            read(path)
    path.write_bytes(pdf("a", password="secret"))
    with pytest.raises(SettingError, match=r"a\.pdf: encrypted with a password"):
        read(path)
    path.write_bytes(pdf("open to all", password=""))
    assert read(path)[0]["text"].strip() == "open to all"


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        (b"PK\x03\x04 ...", r"a ZIP archive, as \.docx"),
        (b"\x89PNG\r\n\x1a\n", "a picture"),
        (b"SQLite format 3\0", "a database"),
    ],
)
def test_an_unknown_kind_is_refused_with_what_was_seen(content, seen, tmp_path):
    path = tmp_path / "thing.xyz"
    path.write_bytes(content)
    with pytest.raises(SettingError, match=rf"thing\.xyz: {seen}.*what is read is \.txt, .*\.zst"):
        read(path)
    with pytest.raises(SettingError, match=r"no file in it is one of .*it holds \.xyz"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("a.txt.zst", "zstandard"),
        ("a.html", "selectolax.lexbor"),
        ("a.pdf", "pypdf"),
        ("a.xml", "wikitextparser"),
    ],
)
def test_a_library_that_is_missing_names_the_extra(name, library, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, library, None)
    (tmp_path / name).write_bytes(b"<mediawiki>")
    with pytest.raises(SettingError, match=rf"{name}: .* pip install 'culm\[files\]'"):
        list(open_source(tmp_path / name, invalid="skip"))


def test_links_in_a_folder_are_counted(tmp_path):
    folder, other = tmp_path / "books", tmp_path / "other"
    other.mkdir()
    (other / "b.jsonl").write_bytes(JSON)
    (folder / "sub").mkdir(parents=True)
    for name, target in (
        ("a.jsonl", other / "b.jsonl"),
        ("more", other),
        ("sub/up", folder),
        ("gone.jsonl", other / "none.jsonl"),
        (".hidden", other),
    ):
        (folder / name).symlink_to(target)
    source = open_source(folder)
    assert [record["text"] for record in source] == ["one", "two"]
    phrase = f"links in {folder} lead to a folder or to nothing and are not followed"
    assert source.left_out == {phrase: 3}


def test_a_saved_dataset_is_refused_with_a_remedy(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "data-00000-of-00001.arrow").write_bytes(b"ARROW1")
        (tmp_path / split / "state.json").write_text('{"text": "not a document"}')
    with pytest.raises(SettingError, match=r"load_from_disk\(.*\)\.to_parquet"):
        open_source(tmp_path)
    assert len(list(open_source(tmp_path / "train" / "state.json"))) == 1
