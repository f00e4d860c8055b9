"""Llama 2 and 3, SmolLM2 (arXiv 2307.09288, 2407.21783)."""

from __future__ import annotations

from typing import Any

from culm.convert.family import Family, Fields
from culm.convert.hf.families.decoder import names, read_attention, read_decoder, write_line
from culm.model.transformer import TransformerConfig


def read(fields: Fields) -> dict[str, Any]:
    values = read_decoder(fields)
    bias = fields.take("attention_bias", False)
    attention = read_attention(fields, values["context"])
    return {**values, "attention": {**attention, "bias": bias, "out_bias": bias}}


def write(config: TransformerConfig) -> dict[str, Any]:
    bias = config.attention[0].out_bias if config.attention[0].kind == "gqa" else False
    return {**write_line(config, "llama"), "attention_bias": bias, "mlp_bias": False}


LLAMA = Family("llama", read, write, names, "LlamaForCausalLM", "LlamaForSequenceClassification")
