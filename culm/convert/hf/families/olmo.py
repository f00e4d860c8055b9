"""OLMo 2 and 3: norms after the branches, and over all heads of q and k (arXiv 2501.00656)."""

from __future__ import annotations

from typing import Any

from culm.convert.family import Family, Fields
from culm.convert.hf.families.decoder import (
    FULL,
    NAMES,
    SANDWICH,
    SLIDING,
    in_layers,
    read_attention,
    read_decoder,
    read_windows,
    with_ropes,
    write_line,
    write_windows,
)
from culm.convert.hf.rope import read_ropes
from culm.convert.rules import TensorRule, renamed
from culm.model.transformer import TransformerConfig

BEFORE = ("blocks.#.attention_norm", "blocks.#.mlp_norm")
OLMO = {name: theirs for name, theirs in (NAMES | SANDWICH).items() if name not in BEFORE}


def names(config: TransformerConfig) -> list[TensorRule]:
    return renamed(OLMO)


def read(fields: Fields) -> dict[str, Any]:
    values, bias = read_decoder(fields), fields.take("attention_bias", False)
    attention = read_attention(fields, values["context"])
    attention |= {"qk_norm": "width", "bias": bias, "out_bias": bias}
    return {**values, "attention": attention, "residual": {"norm": "behind"}}


def read3(fields: Fields) -> dict[str, Any]:
    context, default = fields.left["max_position_embeddings"], (SLIDING,) * 3 + (FULL,)
    windows = read_windows(fields, fields.left["num_hidden_layers"], default=default)
    ropes = read_ropes(fields, context, FULL, SLIDING)
    values = read(fields)
    return {**values, "attention": in_layers(values["attention"], windows, ropes)}


def write(config: TransformerConfig) -> dict[str, Any]:
    fields = write_line(config, "olmo2")
    return {**fields, "attention_bias": config.attention[0].out_bias}


def write3(config: TransformerConfig) -> dict[str, Any]:
    return with_ropes({**write(config), **write_windows(config)}, config)


OLMO2 = Family("olmo2", read, write, names, "Olmo2ForCausalLM", "Olmo2ForSequenceClassification")
OLMO3 = Family(
    "olmo3",
    read3,
    write3,
    names,
    "Olmo3ForCausalLM",
    "Olmo3ForSequenceClassification",
    defaults={"sliding_window": 4096, "rope_theta": 500_000.0},
)
