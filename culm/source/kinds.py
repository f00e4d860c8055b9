"""The kinds of files, and how each is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from culm.config import SettingError
from culm.source import html, jsonl, parquet, pdf, table, text, wiki
from culm.source.compressed import METHODS, UNREADABLE, opened, start_of, suffix_of, unreadable
from culm.source.reading import Reading
from culm.source.record import Record
from culm.source.remote import File

Reader = Callable[[File, Reading], Iterator[Record]]

HEAD = 1 << 16  # bytes by which a kind is known
READERS: Mapping[str, Reader] = {
    "text": text.records,
    "json": jsonl.records,
    "table": table.records,
    "parquet": parquet.records,
    "html": html.records,
    "pdf": pdf.records,
    "wiki": wiki.records,
}
KINDS = {
    **dict.fromkeys((".txt", ".md", ".py", ".rst"), "text"),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "json"),
    **dict.fromkeys((".csv", ".tsv"), "table"),
    ".parquet": "parquet",
    **dict.fromkeys((".html", ".htm"), "html"),
    ".pdf": "pdf",
    ".xml": "wiki",
}
FROM_END = frozenset(("parquet", "pdf"))  # cannot be read from a stream
READ = f"{', '.join(KINDS)}, also compressed ({', '.join(METHODS)})"

# What a file that is not read may be, by its first bytes.
SEEN = {
    b"PK\x03\x04": "a ZIP archive, as .docx, .xlsx, .odt and .epub are",
    b"\xd0\xcf\x11\xe0": "an old document of Microsoft Office",
    b"\x89PNG": "a picture (PNG)",
    b"\xff\xd8\xff": "a picture (JPEG)",
    b"GIF8": "a picture (GIF)",
    b"ID3": "audio (MP3)",
    b"RIFF": "audio, video or a picture (RIFF)",
    b"\x7fELF": "a program",
    b"SQLite format 3": "a database (SQLite)",
    b"ARROW1": "an Arrow file, which the library pyarrow saves as .parquet",
    b"\x93NUMPY": "an array of NumPy",
    b"{\\rtf": "a document in RTF",
}


def kind_of(file: File) -> str | None:
    """How a file is read, by its name; how it is compressed does not matter."""
    return KINDS.get(suffix_of(file))


def is_read(file: File) -> bool:
    """Whether a file of a folder is of a kind that is read; other XML than dumps is not."""
    kind = kind_of(file)
    return wiki.is_dump(file) if kind == "wiki" else kind is not None


def kind_in(file: File) -> str:
    """How a file whose name does not say it is read: by its first bytes.

    Raises:
        SettingError: it is of no kind that is read; says what it is.
    """
    try:
        with opened(file) as content:
            head = start_of(content, HEAD)
    except UNREADABLE as error:
        raise unreadable(file, error) from None
    seen = next((name for magic, name in SEEN.items() if head.startswith(magic)), None)
    if seen is not None:
        raise SettingError(f"{file}: {seen}; what is read is {READ}")
    if head.startswith(parquet.MAGIC):
        return "parquet"
    if head.startswith(pdf.MAGIC):
        return "pdf"
    if html.is_html(head):
        return "html"
    if wiki.root_of(head) == wiki.ROOT:
        return "wiki"
    return "json" if jsonl.is_json(head) else "text"


def records_of(file: File, reading: Reading) -> Iterator[dict[str, Any]]:
    """The records of a file, by its kind."""
    return READERS[kind_of(file) or kind_in(file)](file, reading)
