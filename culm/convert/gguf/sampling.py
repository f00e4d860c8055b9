"""The sampling settings of a GGUF file, which llama.cpp's server takes as defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gguf

# Our names, which are those of `generation_config.json` -> theirs, under `general.sampling`.
NUMBERS = {
    "temperature": "temp",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}
WHOLE = {"top_k": "top_k"}


def add_sampling(writer: gguf.GGUFWriter, generation: Mapping[str, Any]) -> None:
    """Write the settings of a model that is meant to sample."""
    if generation.get("do_sample") is not True:
        return
    for ours, theirs in NUMBERS.items():
        if type(generation.get(ours)) in (int, float):
            writer.add_float32(f"general.sampling.{theirs}", float(generation[ours]))
    for ours, theirs in WHOLE.items():
        if type(generation.get(ours)) is int:
            writer.add_int32(f"general.sampling.{theirs}", generation[ours])


def read_sampling(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The same as generation settings; empty if the file has none."""
    given = {
        ours: fields.get(f"general.sampling.{theirs}") for ours, theirs in (NUMBERS | WHOLE).items()
    }
    found = {
        ours: float(f"{value:.7g}") if isinstance(value, float) else value  # 0.6, as before fp32
        for ours, value in given.items()
        if type(value) in (int, float)
    }
    return {"do_sample": True, **found} if found else {}
