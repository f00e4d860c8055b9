"""Qwen3-MoE: Qwen3 with experts in all or some layers (arXiv 2505.09388)."""

from __future__ import annotations

from typing import Any

from culm.convert.family import Family, Fields
from culm.convert.hf.families import qwen
from culm.convert.hf.families.decoder import (
    NAMES,
    dense_and_moe,
    read_balance_loss,
    write_attention,
    write_balance_loss,
    write_decoder,
)
from culm.convert.rules import TensorRule, renamed
from culm.model.transformer import TransformerConfig

EXPERTS = {
    "blocks.#.mlp.router": "model.layers.#.mlp.gate",
    "blocks.#.mlp.experts.gate": "model.layers.#.mlp.experts.*.gate_proj",
    "blocks.#.mlp.experts.up": "model.layers.#.mlp.experts.*.up_proj",
    "blocks.#.mlp.experts.down": "model.layers.#.mlp.experts.*.down_proj",
}


def names(config: TransformerConfig) -> list[TensorRule]:
    return renamed(NAMES | EXPERTS)


def read(fields: Fields) -> dict[str, Any]:
    fields.only("hidden_act", "silu")
    every, dense = fields.take("decoder_sparse_step", 1), fields.take("mlp_only_layers", None) or []
    experts = fields.take("num_local_experts", None) or fields.take("num_experts")
    fields.drop("num_experts")
    moe = {
        "kind": "moe",
        "experts": experts,
        "top_k": fields.take("num_experts_per_tok"),
        "hidden": fields.take("moe_intermediate_size"),
        "normalize": fields.take("norm_topk_prob", False),
    }
    fields.left["max_window_layers"] = 0  # a window, if used, is in every layer here
    values = qwen.read3(fields)
    sparse = [(i + 1) % every == 0 and i not in dense for i in range(values["layers"])]
    moe = read_balance_loss(fields, moe, sum(sparse))
    return {**values, "mlp": [moe if there else values["mlp"] for there in sparse]}


def write(config: TransformerConfig) -> dict[str, Any]:
    moe, mlp, sparse = dense_and_moe(config, "qwen3_moe")
    return {
        **write_decoder(config, mlp, "qwen3_moe"),
        **write_attention(config, "qwen3_moe"),
        "sliding_window": config.attention[0].window,
        "use_sliding_window": config.attention[0].window is not None,
        "attention_bias": config.attention[0].out_bias,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [layer for layer, there in enumerate(sparse) if not there],
        "num_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
        "moe_intermediate_size": moe.hidden,
        "norm_topk_prob": moe.normalize,
        **write_balance_loss(moe, sum(sparse)),
    }


QWEN3_MOE = Family(
    "qwen3_moe", read, write, names, "Qwen3MoeForCausalLM", "Qwen3MoeForSequenceClassification",
    defaults={"num_key_value_heads": 4, "sliding_window": 4096},
)  # fmt: skip
