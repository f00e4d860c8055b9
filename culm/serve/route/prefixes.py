"""Which beginnings of prompts a replica has read lately, without its tokenizer.

text of a prompt   [ block 0 ][ block 1 ][ block 2 ][ rest ]
keys                  k0 ------> k1 ------> k2        SHA-256 of the key before and of the text

As in `culm.engine.prefix`, but of characters instead of tokens. The first key depends on the salt
of the API key and on the model, so that clients share nothing here either.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from culm.engine.prefix import BLOCK

CHARACTERS = 4 * BLOCK  # of a block: a token has about four
# Templates write tools first, then the dialogue; the last three are other names for a prompt.
FIELDS = ("tools", "instructions", "messages", "input", "prompt", "texts")


def prompt_keys(body: Mapping[str, Any], salt: str, most: int) -> list[bytes]:
    """The keys of the first blocks of a request's prompt, `most` at most.

    Prompts that begin alike have the same first keys: a dialogue and its continuation do.
    """
    given = [json.dumps(body[field], ensure_ascii=False) for field in FIELDS if body.get(field)]
    text = "\n".join(given)[: most * CHARACTERS]
    source = json.dumps([salt, str(body.get("model"))])
    keys = [hashlib.sha256(source.encode()).digest()]
    for start in range(0, len(text) - CHARACTERS + 1, CHARACTERS):
        block = text[start : start + CHARACTERS].encode(errors="surrogatepass")
        keys.append(hashlib.sha256(keys[-1] + block).digest())
    return keys[1:]


class Kept:
    """Keys of up to `blocks` blocks that a replica has read, the least recently used first."""

    def __init__(self, blocks: int) -> None:
        self._blocks = blocks
        self._keys: OrderedDict[bytes, None] = OrderedDict()

    def match(self, keys: Sequence[bytes]) -> int:
        """How many of the first keys are here, without a gap."""
        return next((n for n, key in enumerate(keys) if key not in self._keys), len(keys))

    def add(self, keys: Sequence[bytes]) -> None:
        """These were read now; the first of them is kept longest."""
        for key in reversed(keys):
            self._keys[key] = None
            self._keys.move_to_end(key)
        while len(self._keys) > self._blocks:
            self._keys.popitem(last=False)

    def clear(self) -> None:
        self._keys.clear()
