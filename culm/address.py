"""Addresses of APIs that a user gives, and the keys for them."""

from __future__ import annotations

import os
import re

from culm.config import SettingError


def check_address(url: str, api_key: str | None) -> None:
    """Refuse what is no address of an API, or no name of an environment variable.

    Raises:
        ValueError: neither message repeats the value, which may be a secret.
    """
    if not re.fullmatch(r"https?://[^/?#@\s]+(/[^?#\s]*)?", url):
        raise ValueError(
            "url: this is not http(s)://host:port/path, without a user, a key or a query"
        )
    if api_key is not None and not re.fullmatch("[A-Z][A-Z0-9_]*", api_key):
        raise ValueError(
            "api_key: give the name of an environment variable that holds the key, such as "
            "JUDGE_API_KEY, and not the key"
        )


def key_of(variable: str, setting: str) -> str:
    """The API key in an environment variable, which a setting names.

    Raises:
        SettingError: it holds none.
    """
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        what = "holds no key: it has other characters" if key else "is not set"
        raise SettingError(f"{setting}: the environment variable {variable} {what}")
    return key
