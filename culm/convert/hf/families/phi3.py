"""Phi-3: Llama with one matrix for q, k and v, and one for gate and up (arXiv 2404.14219)."""

from __future__ import annotations

from typing import Any

from culm.convert.family import Family, Fields
from culm.convert.hf.families.decoder import (
    NAMES,
    gated,
    in_layers,
    read_attention,
    read_decoder,
    read_windows,
    the_only,
    write_line,
)
from culm.convert.rules import TensorRule, join, renamed, split
from culm.model.attention.gqa import GQA
from culm.model.transformer import TransformerConfig

FUSED = ("attention.q", "attention.k", "attention.v", "mlp.gate", "mlp.up")


def names(config: TransformerConfig) -> list[TensorRule]:
    attention = the_only(config.attention, GQA, "attention", "phi3")
    hidden = gated(config, "phi3").inner(config.width)
    q, k = (count * attention.head_dim for count in (attention.heads, attention.kv_heads))
    parts = tuple(f"blocks.#.{part}" for part in FUSED)
    qkv, gates = "model.layers.#.self_attn.qkv_proj", "model.layers.#.mlp.gate_up_proj"
    return [
        *renamed({ours: theirs for ours, theirs in NAMES.items() if not ours.endswith(FUSED)}),
        TensorRule(parts[:3], (qkv,), split(q, k, k), join),
        TensorRule(parts[3:], (gates,), split(hidden, hidden), join),
    ]


def read(fields: Fields) -> dict[str, Any]:
    values = read_decoder(fields)
    fields.drop("embd_pdrop")
    attention = read_attention(fields, values["context"], partial=True)
    windows = read_windows(fields, values["layers"])
    dropout = {"dropout": fields.take("resid_pdrop", 0.0)}
    return {**values, "attention": in_layers(attention, windows), "residual": dropout}


def write(config: TransformerConfig) -> dict[str, Any]:
    return {
        **write_line(config, "phi3"),
        "sliding_window": config.attention[0].window,
        "resid_pdrop": config.residual.dropout,
    }


PHI3 = Family("phi3", read, write, names, "Phi3ForCausalLM", "Phi3ForSequenceClassification")
