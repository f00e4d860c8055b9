"""OLMo 2 and 3: norms behind the branches, and over all heads of q and k (arXiv 2501.00656)."""

from __future__ import annotations

from typing import Any

from culm.convert.families.decoder import (
    FULL,
    NAMES,
    SLIDING,
    in_layers,
    read_attention,
    read_decoder,
    read_windows,
    write_line,
    write_ropes,
    write_windows,
)
from culm.convert.family import Family, Fields
from culm.convert.hf_rope import read_ropes
from culm.convert.rules import Rule, renamed
from culm.model.transformer import TransformerConfig

OLMO = {name: theirs for name, theirs in NAMES.items() if not name.endswith(("n_norm", "mlp_norm"))}
OLMO |= {
    "blocks.#.attention.q_norm": "model.layers.#.self_attn.q_norm",
    "blocks.#.attention.k_norm": "model.layers.#.self_attn.k_norm",
    "blocks.#.attention_out_norm": "model.layers.#.post_attention_layernorm",
    "blocks.#.mlp_out_norm": "model.layers.#.post_feedforward_layernorm",
}


def names(config: TransformerConfig) -> list[Rule]:
    return renamed(OLMO)


def read(fields: Fields) -> dict[str, Any]:
    values, bias = read_decoder(fields), fields.take("attention_bias", False)
    attention = read_attention(fields, values["context"])
    attention |= {"qk_norm": "width", "bias": bias, "out_bias": bias}
    return {**values, "attention": attention, "residual": {"norm": "behind"}}


def read3(fields: Fields) -> dict[str, Any]:
    context, default = fields.left["max_position_embeddings"], (SLIDING,) * 3 + (FULL,)
    windows = read_windows(fields, fields.left["num_hidden_layers"], default=default)
    full, sliding = read_ropes(fields, context, FULL, SLIDING)
    values = read(fields)
    parts = in_layers(values["attention"], windows)
    for part in parts:
        part["rope"] = sliding if part["window"] else full
    return {**values, "attention": parts}


def write(config: TransformerConfig) -> dict[str, Any]:
    fields = write_line(config, "olmo2")
    return {**fields, "attention_bias": config.attention[0].out_bias}


def write3(config: TransformerConfig) -> dict[str, Any]:
    fields = write(config)
    for name in ("rope_theta", "rope_scaling"):  # of one for all
        fields.pop(name, None)
    return {**fields, **write_windows(config), **write_ropes(config)}


OLMO2 = Family("olmo2", "Olmo2ForCausalLM", read, write, names)
OLMO3 = Family("olmo3", "Olmo3ForCausalLM", read3, write3, names)
