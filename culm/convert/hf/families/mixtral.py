"""Mixtral: Mistral with experts in every layer (arXiv 2401.04088)."""

from __future__ import annotations

from typing import Any

from culm.convert.family import Family, Fields
from culm.convert.hf.families.decoder import (
    NAMES,
    in_layers,
    read_attention,
    read_balance_loss,
    read_decoder,
    read_windows,
    the_only,
    write_attention,
    write_balance_loss,
    write_decoder,
)
from culm.convert.rules import TensorRule, renamed
from culm.model.mlp.gated import SwiGLU
from culm.model.mlp.moe import MoE
from culm.model.transformer import TransformerConfig

EXPERTS = {
    "blocks.#.mlp.router": "model.layers.#.block_sparse_moe.gate",
    "blocks.#.mlp.experts.gate": "model.layers.#.block_sparse_moe.experts.*.w1",
    "blocks.#.mlp.experts.up": "model.layers.#.block_sparse_moe.experts.*.w3",
    "blocks.#.mlp.experts.down": "model.layers.#.block_sparse_moe.experts.*.w2",
}


def names(config: TransformerConfig) -> list[TensorRule]:
    return renamed(NAMES | EXPERTS)


def read(fields: Fields) -> dict[str, Any]:
    fields.only("hidden_act", "silu")
    values = read_decoder(fields)
    mlp = {
        "kind": "moe",
        "hidden": values["mlp"]["hidden"],
        "experts": fields.take("num_local_experts"),
        "top_k": fields.take("num_experts_per_tok"),
    }
    mlp = read_balance_loss(fields, mlp, values["layers"])
    windows = read_windows(fields, values["layers"])
    attention = in_layers(read_attention(fields, values["context"]), windows)
    return {**values, "mlp": mlp, "attention": attention}


def write(config: TransformerConfig) -> dict[str, Any]:
    mlp = the_only(config.mlp, MoE, "mlp", "mixtral")
    return {
        **write_decoder(config, SwiGLU(hidden=mlp.hidden), "mixtral"),
        **write_attention(config, "mixtral"),
        "sliding_window": config.attention[0].window,
        "num_local_experts": mlp.experts,
        "num_experts_per_tok": mlp.top_k,
        **write_balance_loss(mlp, config.layers),
    }


MIXTRAL = Family(
    "mixtral",
    read,
    write,
    names,
    "MixtralForCausalLM",
    "MixtralForSequenceClassification",
    defaults={"num_key_value_heads": 8, "rope_theta": 1_000_000.0},
)
