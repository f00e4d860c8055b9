"""The chat page: one file that loads nothing else, which its security policy enforces."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from functools import cache
from pathlib import Path

from starlette.responses import HTMLResponse


@cache
def _page() -> tuple[str, str]:
    """The page and its Content-Security-Policy, which names its script and style by their hash."""
    text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    hashes = {
        name: b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
        for name in ("script", "style")
        if (found := re.search(f"<{name}>(.*?)</{name}>", text, re.DOTALL))
    }
    policy = (
        f"default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; "
        f"form-action 'none'; frame-ancestors 'none'; "
        f"script-src 'sha256-{hashes['script']}'; style-src 'sha256-{hashes['style']}'"
    )
    return text, policy


def page() -> HTMLResponse:
    """The page as a response."""
    text, policy = _page()
    return HTMLResponse(text, headers={"Content-Security-Policy": policy})
