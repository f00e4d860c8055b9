"""The text of PDF documents, page by page."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from culm.config import SettingError
from culm.source.compressed import UNREADABLE, opened, refuse_compressed, refuse_pointer, unreadable
from culm.source.reading import Reading
from culm.source.record import LeftOut, Record, Unreadable
from culm.source.remote import File
from culm.source.text import documents

MAGIC = b"%PDF-"
EMPTY = "pages of PDF files hold no text (scanned ones hold pictures of it) and are left out"
PAGE = "\n\n"  # between two pages


def records(file: File, reading: Reading) -> Iterator[Record]:
    """The text of all pages as one, or as `reading` divides it; only one page is in memory.

    Raises:
        SettingError: the library is not installed.
        Unreadable: the file is damaged, or needs a password.
    """
    try:
        from pypdf import PdfReader
    except ImportError:
        raise SettingError(f"{file}: PDF needs the extra: pip install 'culm[files]'") from None
    refuse_compressed(file, "PDF")
    refuse_pointer(file)
    empty = 0
    try:
        with opened(file) as content:
            if content.read(1) == b"":
                return  # which `Files` counts
            pdf = _open(PdfReader, content, file)

            def pages() -> Iterator[str]:
                nonlocal empty
                for number in range(_count(pdf, file)):
                    text = _text(pdf, number, file)
                    empty += not text.strip()
                    yield text + PAGE if text.strip() else ""

            yield from documents(pages(), reading, str(file))
    except UNREADABLE as error:
        raise unreadable(file, error) from None
    for _ in range(empty):
        yield Record({}, str(file), EMPTY, failure=LeftOut)


def _open(reader: Any, content: Any, file: File) -> Any:
    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it warns of what it then repairs
    try:
        pdf = reader(content)
        locked = pdf.is_encrypted and not pdf.decrypt("")  # many have an empty password
    except SettingError:  # of the network
        raise
    except Exception as error:  # of a damaged file the library raises whatever happens
        raise _damaged(file, "", error) from None
    if locked:
        raise Unreadable(f"{file}: encrypted with a password; save it without one")
    return pdf


def _count(pdf: Any, file: File) -> int:
    try:
        return len(pdf.pages)
    except SettingError:
        raise
    except Exception as error:
        raise _damaged(file, "", error) from None


def _text(pdf: Any, number: int, file: File) -> str:
    try:
        return pdf.pages[number].extract_text()
    except SettingError:
        raise
    except Exception as error:
        raise _damaged(file, f"page {number + 1}: ", error) from None


def _damaged(file: File, page: str, error: Exception) -> Unreadable:
    reason = str(error).strip() or type(error).__name__
    return Unreadable(f"{file}: {page}cannot be read as PDF: {reason}")
