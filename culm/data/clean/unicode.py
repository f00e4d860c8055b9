"""Normalise Unicode, repair mojibake and remove control characters."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from culm.config import SettingError
from culm.data.clean.stage import Changes, Rewriter, Stage, Step

# C0 and C1 controls but tab and line feed, soft hyphens, marks of direction, the byte order mark,
# zero-width and word-joining marks that no script needs (joiners, which emoji and Indic scripts
# need, stay), lone surrogates, and what is no character at all.
CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u200b\u200e\u200f\u2028-\u202e\u2060-\u2064\u2066-\u206f"
    "\ufeff\ufff9-\ufffb\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]+"
)
CONTROL_ASCII = re.compile("[\x00-\x08\x0b-\x1f\x7f]")  # the same in ASCII, found faster
LINES = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")  # other ways to end a line
ENDS = re.compile("[\r\x0b\x0c\x85\u2028\u2029]")


class Unicode(Stage):
    """form: of normalisation; NFC joins letters and accents, NFKC also replaces forms such as
    ligatures and full-width letters, "none" leaves them.
    mojibake: repair text that was decoded with a wrong encoding, such as "cafÃ©" (needs the package
        ftfy: pip install 'culm[clean]').
    control: remove control characters, and write every end of a line as a line feed.
    """

    kind: Literal["unicode"] = "unicode"
    form: Literal["NFC", "NFKC", "none"] = "NFC"
    mojibake: bool = True
    control: bool = True

    def build(self) -> Step:
        if self.mojibake:
            ftfy_version()
        return _Unicode(self)

    @property
    def versions(self) -> Mapping[str, str]:
        found = {"unicode": unicodedata.unidata_version}
        return {**found, "ftfy": ftfy_version()} if self.mojibake else found


def ftfy_version() -> str:
    """Of the library that repairs encodings.

    Raises:
        SettingError: it is not installed.
    """
    try:
        return version("ftfy")
    except PackageNotFoundError:
        raise SettingError(
            "data.clean: unicode repairs mojibake with ftfy; pip install 'culm[clean]', or set "
            "mojibake=false"
        ) from None


class _Unicode(Rewriter):
    def __init__(self, settings: Unicode) -> None:
        self._settings = settings

    def rewrite(self, text: str, changes: Changes) -> str:
        settings = self._settings
        if not text.isascii():
            if settings.mojibake and (fixed := _repaired(text)) != text:
                changes["texts are decoded again, from mojibake"] += 1
                text = fixed
            if settings.form != "none" and not unicodedata.is_normalized(settings.form, text):
                changes[f"texts are normalised to {settings.form}"] += 1
                text = unicodedata.normalize(settings.form, text)
        search = CONTROL_ASCII if text.isascii() else CONTROL
        if settings.control and search.search(text) is not None:
            if ENDS.search(text) is not None:
                text, count = LINES.subn("\n", text)
                changes["ends of lines are written as line feeds"] += count
            length = len(text)
            text = CONTROL.sub("", text)
            if gone := length - len(text):
                changes["control characters are removed"] += gone
        return text


def _repaired(text: str) -> str:
    """Line by line: one wrong line must not change how the others are read."""
    from ftfy import fix_encoding  # an extra
    from ftfy.badness import is_bad

    if not is_bad(text):
        return text
    return "\n".join(fix_encoding(line) if is_bad(line) else line for line in text.split("\n"))
