"""The chat page: one file that loads nothing else, which its security policy enforces."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from functools import cache
from pathlib import Path

from starlette.responses import HTMLResponse

SCRIPTS = ("markdown", "dialogue", "server", "view", "state", "turns", "ask", "page")


@cache
def _page() -> tuple[str, dict[str, str]]:
    """The page and its headers; the policy names its script and style by their hash.

    No text can become HTML: there is no policy of trusted types that would make it trusted.
    """
    style = _read("style.css")
    script = '"use strict";\n' + "\n".join(_read(f"{name}.js") for name in SCRIPTS)
    text = _read("page.html").replace("<style></style>", f"<style>{style}</style>")
    text = text.replace("<script></script>", f"<script>{script}</script>")
    policy = (
        f"default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; "
        f"form-action 'none'; frame-ancestors 'none'; "
        f"require-trusted-types-for 'script'; trusted-types 'none'; "
        f"script-src 'sha256-{_hash(script)}'; style-src 'sha256-{_hash(style)}'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return text, headers


def page() -> HTMLResponse:
    """The page as a response."""
    text, headers = _page()
    return HTMLResponse(text, headers=headers)


def _read(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return b64encode(hashlib.sha256(text.encode()).digest()).decode()
