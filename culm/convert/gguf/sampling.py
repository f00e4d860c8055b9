"""The generation settings of a GGUF file: tokens that are never generated, and sampling, which
llama.cpp's server takes as defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gguf

from culm.log import say
from culm.tokenizer.tokenizer import Tokenizer

# Our names, which are those of `generation_config.json` -> theirs, under `general.sampling`.
NUMBERS = {
    "temperature": "temp",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}
WHOLE = {"top_k": "top_k"}
SUPPRESSED = "tokenizer.ggml.suppress_tokens"
PREFIX = "general.sampling."


def add_generation(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    """Write suppressed tokens, and the sampling settings of a model that is meant to sample."""
    if tokenizer.suppressed:
        writer.add_array(SUPPRESSED, list(tokenizer.suppressed))
    generation = tokenizer.generation
    if generation.get("do_sample") is not True:
        return
    for ours, theirs in NUMBERS.items():
        if type(generation.get(ours)) in (int, float):
            writer.add_float32(f"{PREFIX}{theirs}", float(generation[ours]))
    for ours, theirs in WHOLE.items():
        if type(generation.get(ours)) is int:
            writer.add_int32(f"{PREFIX}{theirs}", generation[ours])


def read_generation(fields: Mapping[str, Any], source: object) -> dict[str, Any]:
    """The same under our names; empty if the file has none. Unused settings are reported."""
    known = {f"{PREFIX}{theirs}": ours for ours, theirs in (NUMBERS | WHOLE).items()}
    unused = [key for key in fields if key.startswith(PREFIX) and key not in known]
    if unused:
        say(f"{source}: {', '.join(unused)}: settings of llama.cpp's server, not used here.")
    given = {ours: fields.get(key) for key, ours in known.items()}
    found = {
        ours: float(f"{value:.7g}") if isinstance(value, float) else value  # 0.6, as before fp32
        for ours, value in given.items()
        if type(value) in (int, float)
    }
    suppressed = {"suppress_tokens": fields[SUPPRESSED]} if fields.get(SUPPRESSED) else {}
    return suppressed | ({"do_sample": True, **found} if found else {})
