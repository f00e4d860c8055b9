"""The space that some tokenizers put before a text, so that its first word is like any other.

Those made by sentencepiece do: "a cat" is read as "▁a▁cat". The middle of a text must not get one.
"""

from __future__ import annotations

import json
from typing import Any


def without_prefix(written: str) -> str | None:
    """The JSON of a tokenizer, changed to put no space first; None where it puts none."""
    parts = json.loads(written)
    changed = {name: _plain(parts[name]) for name in ("normalizer", "pre_tokenizer")}
    if changed.items() <= parts.items():
        return None
    return json.dumps(parts | changed, ensure_ascii=False)


def _plain(part: Any) -> Any:
    match part:
        case {"type": "Prepend"}:
            return None
        case {"type": "Metaspace"}:
            return {**part, "prepend_scheme": "never"}
        case {"type": "ByteLevel"}:
            return {**part, "add_prefix_space": False}
        case {"type": "Sequence", "normalizers": inner}:
            return {**part, "normalizers": [p for p in map(_plain, inner) if p is not None]}
        case {"type": "Sequence", "pretokenizers": inner}:
            return {**part, "pretokenizers": list(map(_plain, inner))}
    return part
