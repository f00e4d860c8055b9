"""Mistral: Llama with a window in every layer (arXiv 2310.06825)."""

from __future__ import annotations

from typing import Any

from culm.convert.family import Family, Fields
from culm.convert.hf.families.decoder import (
    in_layers,
    names,
    read_attention,
    read_decoder,
    read_windows,
    write_line,
)
from culm.model.transformer import TransformerConfig


def read(fields: Fields) -> dict[str, Any]:
    values = read_decoder(fields)
    attention = read_attention(fields, values["context"])
    return {**values, "attention": in_layers(attention, read_windows(fields, values["layers"]))}


def write(config: TransformerConfig) -> dict[str, Any]:
    fields = write_line(config, "mistral")
    return {**fields, "sliding_window": config.attention[0].window}


MISTRAL = Family(
    "mistral",
    read,
    write,
    names,
    "MistralForCausalLM",
    "MistralForSequenceClassification",
    defaults={"num_key_value_heads": 8, "sliding_window": 4096},
)
