"""GPT-NeoX and Pythia: parallel branches, a quarter of each head rotated (arXiv 2204.06745)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from culm.convert.family import Family, Fields
from culm.convert.hf.families.decoder import THEIRS, activation_of, the_only
from culm.convert.hf.rope import read_rope, rope_fields
from culm.convert.rules import TensorRule, renamed
from culm.model.attention.gqa import GQA
from culm.model.mlp.plain import Plain
from culm.model.rope import Rope
from culm.model.transformer import TransformerConfig

NAMES = {
    "embed": "gpt_neox.embed_in",
    "norm": "gpt_neox.final_layer_norm",
    "head": "embed_out",
    "blocks.#.attention_norm": "gpt_neox.layers.#.input_layernorm",
    "blocks.#.attention.out": "gpt_neox.layers.#.attention.dense",
    "blocks.#.mlp_norm": "gpt_neox.layers.#.post_attention_layernorm",
    "blocks.#.mlp.up": "gpt_neox.layers.#.mlp.dense_h_to_4h",
    "blocks.#.mlp.down": "gpt_neox.layers.#.mlp.dense_4h_to_h",
}


def names(config: TransformerConfig) -> list[TensorRule]:
    heads = the_only(config.attention, GQA, "attention", "gpt_neox").heads

    def split_parts(tensors: list[Tensor]) -> list[Tensor]:
        """Rows are q, k and v of the first head, then of the second, and so on."""
        parts = tensors[0].unflatten(0, (heads, 3, -1)).unbind(1)
        return [part.flatten(0, 1) for part in parts]

    def join_parts(tensors: list[Tensor]) -> list[Tensor]:
        per_head = [tensor.unflatten(0, (heads, 1, -1)) for tensor in tensors]
        return [torch.cat(per_head, dim=1).flatten(0, 2)]

    whole = tuple(f"blocks.#.attention.{part}" for part in "qkv")
    fused = ("gpt_neox.layers.#.attention.query_key_value",)
    return [*renamed(NAMES), TensorRule(whole, fused, split_parts, join_parts)]


def read(fields: Fields) -> dict[str, Any]:
    context, bias = fields.take("max_position_embeddings"), fields.take("attention_bias", True)
    if not fields.left.get("rope_parameters"):  # their names in transformers 4
        fields.left["partial_rotary_factor"] = fields.take("rotary_pct", 0.25)
        fields.left["rope_theta"] = fields.take("rotary_emb_base", 10_000)
    fields.drop("classifier_dropout", "attention_dropout")
    return {
        "vocabulary": fields.take("vocab_size"),
        "width": fields.take("hidden_size"),
        "layers": fields.take("num_hidden_layers"),
        "context": context,
        "attention": {
            "kind": "gqa",
            "heads": fields.take("num_attention_heads"),
            "bias": bias,
            "out_bias": bias,
            "rope": read_rope(fields, context, partial=True),
        },
        "mlp": {
            "kind": "plain",
            "hidden": fields.take("intermediate_size"),
            "activation": activation_of(fields, "hidden_act", "gelu"),
            "bias": True,
        },
        "norm": {"kind": "layer", "eps": fields.take("layer_norm_eps", 1e-5)},
        "residual": {
            "parallel": fields.take("use_parallel_residual", True),
            "dropout": fields.take("hidden_dropout", 0.0),
        },
        "tied": fields.take("tie_word_embeddings", False),
    }


def write(config: TransformerConfig) -> dict[str, Any]:
    mlp = the_only(config.mlp, Plain, "mlp", "gpt_neox")
    attention = the_only(config.attention, GQA, "attention", "gpt_neox")
    rope = attention.rope or Rope()
    fields = rope_fields(rope)  # a quarter is the default
    for name in fields.keys() & {"rope_parameters", "rope_scaling"}:
        fields[name]["partial_rotary_factor"] = rope.fraction
    return {
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "max_position_embeddings": config.context,
        "num_attention_heads": attention.heads,
        "attention_bias": attention.out_bias,
        "intermediate_size": mlp.hidden,
        "hidden_act": THEIRS.get(mlp.activation, mlp.activation),
        "layer_norm_eps": config.norm.eps,
        "use_parallel_residual": config.residual.parallel,
        "hidden_dropout": config.residual.dropout,
        "tie_word_embeddings": config.tied,
        **fields,
    }


NEOX = Family(
    "gpt_neox",
    read,
    write,
    names,
    "GPTNeoXForCausalLM",
    "GPTNeoXForSequenceClassification",
    root="gpt_neox.",
)
