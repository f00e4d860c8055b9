"""A page of one file that loads nothing else, which its security policy enforces."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Iterable
from pathlib import Path

from starlette.responses import HTMLResponse

PARTS = Path(__file__).with_name("page")  # the parts that pages share are those of the chat page


class Document:
    """HTML with its style and script in it.

    The policy names both by their hash. No text can become HTML: there is no policy of trusted
    types that would make it trusted.
    """

    def __init__(self, html: Path, styles: Iterable[Path], scripts: Iterable[Path]) -> None:
        """html: has an empty `style` and an empty `script`, which the files fill."""
        style = _joined(styles)
        script = '"use strict";\n' + _joined(scripts)
        text = html.read_text(encoding="utf-8")
        text = text.replace("<style></style>", f"<style>{style}</style>")
        self._text = text.replace("<script></script>", f"<script>{script}</script>")
        policy = (
            f"default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; "
            f"form-action 'none'; frame-ancestors 'none'; "
            f"require-trusted-types-for 'script'; trusted-types 'none'; "
            f"script-src 'sha256-{_hash(script)}'; style-src 'sha256-{_hash(style)}'"
        )
        self._headers = {
            "Content-Security-Policy": policy,
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
        }

    def response(self) -> HTMLResponse:
        return HTMLResponse(self._text, headers=self._headers)


def _joined(paths: Iterable[Path]) -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


def _hash(text: str) -> str:
    return b64encode(hashlib.sha256(text.encode()).digest()).decode()
