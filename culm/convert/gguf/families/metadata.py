"""What the families of GGUF files share: metadata after `general.architecture`, and names.

Facts that llama.cpp assumes for all models of a family (every sixth layer of Gemma 3 has no window)
are added when reading, and `family_of` checks them for a model of ours.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from culm.config import SettingError
from culm.convert.family import Fields
from culm.convert.hf.families.decoder import the_only
from culm.model.attention.gqa import GQA
from culm.model.norm import LayerNormConfig, RMSNormConfig
from culm.model.rope import Rope, YaRNScaling
from culm.model.transformer import TransformerConfig

NAMES = {
    "embed": "token_embd",
    "norm": "output_norm",
    "head": "output",
    "blocks.#.attention_norm": "blk.#.attn_norm",
    "blocks.#.attention.q": "blk.#.attn_q",
    "blocks.#.attention.k": "blk.#.attn_k",
    "blocks.#.attention.v": "blk.#.attn_v",
    "blocks.#.attention.out": "blk.#.attn_output",
    "blocks.#.attention.q_norm": "blk.#.attn_q_norm",
    "blocks.#.attention.k_norm": "blk.#.attn_k_norm",
    "blocks.#.mlp_norm": "blk.#.ffn_norm",
    "blocks.#.mlp.gate": "blk.#.ffn_gate",
    "blocks.#.mlp.up": "blk.#.ffn_up",
    "blocks.#.mlp.down": "blk.#.ffn_down",
    "blocks.#.mlp.router": "blk.#.ffn_gate_inp",
    "blocks.#.mlp.experts.gate": "blk.#.ffn_gate_exps",
    "blocks.#.mlp.experts.up": "blk.#.ffn_up_exps",
    "blocks.#.mlp.experts.down": "blk.#.ffn_down_exps",
}
OUT_NORMS = {
    "blocks.#.attention_out_norm": "blk.#.post_attention_norm",
    "blocks.#.mlp_out_norm": "blk.#.post_ffw_norm",
}


def read_common(fields: Fields, partial: bool = False) -> dict[str, Any]:
    """The common settings. partial: whether the family may rotate a part of a head."""
    fields.only("attention.causal", True)
    fields.drop("attention.value_length")
    rotated = fields.take("rope.dimension_count", None)
    rms = fields.take("attention.layer_norm_rms_epsilon", None)
    eps = fields.take("attention.layer_norm_epsilon", None) if rms is None else rms
    heads, width = fields.take("attention.head_count"), fields.take("embedding_length")
    head_dim = fields.take("attention.key_length", None)
    if not partial and rotated not in (None, head_dim or width // heads):
        raise SettingError(
            f"rope.dimension_count: {rotated} of {head_dim or width // heads} is not read here: "
            "this family rotates full heads"
        )
    return {
        "vocabulary": fields.take("vocabulary"),
        "width": width,
        "layers": fields.take("block_count"),
        "context": fields.take("context_length"),
        "norm": {"kind": "layer" if rms is None else "rms", "eps": eps},
        "tied": fields.take("tied"),
        "attention": {
            "kind": "gqa",
            "heads": heads,
            "kv_heads": fields.take("attention.head_count_kv", heads),
            "head_dim": head_dim,
        },
    }


def write_common(
    config: TransformerConfig,
    family: str,
    norm: type[RMSNormConfig] | type[LayerNormConfig] = RMSNormConfig,
) -> dict[str, Any]:
    attention = the_only(config.attention, GQA, "attention", family)
    if not isinstance(config.norm, norm):
        raise SettingError(f"model.norm: {family} models have no {config.norm.kind!r}")
    rms = norm is RMSNormConfig
    eps = "attention.layer_norm_rms_epsilon" if rms else "attention.layer_norm_epsilon"
    return {
        "vocabulary": config.vocabulary,
        "tied": config.tied,
        "embedding_length": config.width,
        "block_count": config.layers,
        "context_length": config.context,
        "attention.head_count": attention.heads,
        "attention.head_count_kv": attention.kv_heads,
        "attention.key_length": attention.head_dim,
        "attention.value_length": attention.head_dim,
        eps: config.norm.eps,
    }


def read_rope(fields: Fields, llama3: bool = False) -> dict[str, Any]:
    """Values of our `Rope`. llama3: whether the family reads factors that are a tensor."""
    # llama.cpp takes a factor without a kind for a linear one.
    given = fields.left.get("rope.scaling.factor") is not None
    kind = fields.take("rope.scaling.type", "linear" if given else "none")
    rope: dict[str, Any] = {"base": fields.take("rope.freq_base", 10_000.0)}
    factor = fields.take("rope.scaling.factor", 1.0)
    original = fields.take("rope.scaling.original_context_length", None)
    if kind == "linear":
        rope["scaling"] = {"kind": "linear", "factor": factor}
    elif kind == "yarn":
        rope["scaling"] = {"kind": "yarn", "factor": factor, "original": original}
    elif kind != "none":
        raise SettingError(f"rope.scaling.type: {kind!r} is not one of none, linear, yarn")
    if (factors := fields.take("llama3", None)) is not None:
        if not llama3:
            raise SettingError("rope_freqs.weight: this family does not read such factors")
        rope["scaling"] = factors
    return rope


def write_rope(rope: Rope | None) -> dict[str, Any]:
    if rope is None:
        return {}
    fields: dict[str, Any] = {"rope.freq_base": rope.base}
    scaling = rope.scaling
    if scaling is not None and scaling.kind == "llama3":  # it is a tensor in the file
        return {**fields, "llama3": scaling.model_dump()}
    if scaling is not None:
        fields |= {"rope.scaling.type": scaling.kind, "rope.scaling.factor": scaling.factor}
    if isinstance(scaling, YaRNScaling):
        fields["rope.scaling.original_context_length"] = scaling.original
    return fields


def factors_of(rope: Rope, head_dim: int) -> Tensor:
    """(D/2,) fp32: the factor by which scaling slows each pair down."""
    plain = Rope(base=rope.base).frequencies(rope.rotary_dim(head_dim))
    return (plain / rope.frequencies(rope.rotary_dim(head_dim))).to(torch.float32)
