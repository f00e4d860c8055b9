"""DeepSeek-V3: latent attention, experts after dense first layers (arXiv 2412.19437)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from culm.convert.family import Family, Fields
from culm.convert.hf.families.decoder import (
    NAMES,
    dense_and_moe,
    read_decoder,
    the_only,
    write_decoder,
)
from culm.convert.hf.rope import read_rope, rope_fields, take_mapping
from culm.convert.rules import Change, TensorRule, half_split, interleaved, renamed
from culm.model.attention.mla import MLA
from culm.model.transformer import TransformerConfig

ATTENTION, MLP = "model.layers.#.self_attn", "model.layers.#.mlp"
PLAIN = {name: theirs for name, theirs in NAMES.items() if ".attention." not in name} | {
    "blocks.#.attention.out": f"{ATTENTION}.o_proj",
    "blocks.#.attention.query_latent": f"{ATTENTION}.q_a_proj",
    "blocks.#.attention.query_norm": f"{ATTENTION}.q_a_layernorm",
    "blocks.#.attention.latent_norm": f"{ATTENTION}.kv_a_layernorm",
    "blocks.#.mlp.router.weight": f"{MLP}.gate.weight",
    "blocks.#.mlp.router.selection": f"{MLP}.gate.e_score_correction_bias",
    "blocks.#.mlp.experts.gate": f"{MLP}.experts.*.gate_proj",
    "blocks.#.mlp.experts.up": f"{MLP}.experts.*.up_proj",
    "blocks.#.mlp.experts.down": f"{MLP}.experts.*.down_proj",
    "blocks.#.mlp.shared.gate": f"{MLP}.shared_experts.gate_proj",
    "blocks.#.mlp.shared.up": f"{MLP}.shared_experts.up_proj",
    "blocks.#.mlp.shared.down": f"{MLP}.shared_experts.down_proj",
}


def rotated_rules(mla: MLA, queries: str, latents: str) -> list[TensorRule]:
    """Rules for rotated projections, which other libraries store interleaved, by their names."""

    def split_latent(tensors: list[Tensor]) -> list[Tensor]:
        latent, key = tensors[0].split((mla.rank, mla.rope_dim))
        return [latent, half_split(key, 1)]

    def joined(tensors: list[Tensor]) -> list[Tensor]:
        return [torch.cat((tensors[0], interleaved(tensors[1], 1)))]

    ours = ("blocks.#.attention.latent", "blocks.#.attention.rope_key")
    read, write = _queries(mla, half_split), _queries(mla, interleaved)
    return [
        TensorRule(("blocks.#.attention.q",), (queries,), read, write),
        TensorRule(ours, (latents,), split_latent, joined),
    ]


def _queries(mla: MLA, change: Callable[[Tensor, int], Tensor]) -> Change:
    """The rotated rows of each head in the other layout."""

    def changed(tensors: list[Tensor]) -> list[Tensor]:
        heads = tensors[0].unflatten(0, (mla.heads, -1))
        rows, rotated = heads.split((mla.head_dim, mla.rope_dim), 1)
        rotated = change(rotated.flatten(0, 1), mla.heads).unflatten(0, (mla.heads, -1))
        return [torch.cat((rows, rotated), 1).flatten(0, 1)]

    return changed


def names(config: TransformerConfig) -> list[TensorRule]:
    mla = the_only(config.attention, MLA, "attention", "deepseek_v3")
    ours = ("blocks.#.attention.k", "blocks.#.attention.v")

    def split_heads(tensors: list[Tensor]) -> list[Tensor]:
        parts = tensors[0].unflatten(0, (mla.heads, -1)).split((mla.head_dim, mla.value_dim), 1)
        return [part.flatten(0, 1) for part in parts]

    def join_heads(tensors: list[Tensor]) -> list[Tensor]:
        parts = [tensor.unflatten(0, (mla.heads, -1)) for tensor in tensors]
        return [torch.cat(parts, 1).flatten(0, 1)]

    query = "q_b_proj" if mla.query_rank else "q_proj"
    return [
        *renamed(PLAIN),
        *rotated_rules(mla, f"{ATTENTION}.{query}", f"{ATTENTION}.kv_a_proj_with_mqa"),
        TensorRule(ours, (f"{ATTENTION}.kv_b_proj",), split_heads, join_heads),
    ]


def read(fields: Fields) -> dict[str, Any]:
    fields.only("hidden_act", "silu")
    fields.only("rope_interleave", True)
    fields.only("topk_method", "noaux_tc")
    fields.only("scoring_func", "sigmoid")
    fields.only("moe_layer_freq", 1)
    fields.only("ep_size", 1)
    # Settings that repeat others, and MTP heads, which do not change the model itself.
    fields.drop("head_dim", "qk_head_dim", "num_key_value_heads", "num_nextn_predict_layers")
    fields.drop("aux_loss_alpha", "seq_aux", "output_router_logits")
    values, (rope, stretch) = read_decoder(fields), _rope(fields)
    plain, rotated = fields.take("qk_nope_head_dim"), fields.take("qk_rope_head_dim")
    attention = {
        "kind": "mla",
        "heads": fields.take("num_attention_heads"),
        "rank": fields.take("kv_lora_rank"),
        "query_rank": fields.take("q_lora_rank", None),
        "head_dim": plain,
        "rope_dim": rotated,
        "value_dim": fields.take("v_head_dim"),
        "bias": fields.take("attention_bias", False),
        "rope": rope,
        "scale": (plain + rotated) ** -0.5 * stretch,
    }
    moe = {
        "kind": "moe",
        "experts": fields.take("n_routed_experts"),
        "top_k": fields.take("num_experts_per_tok"),
        "hidden": fields.take("moe_intermediate_size"),
        "shared": fields.take("n_shared_experts", 0),
        "scores": "sigmoid",
        "normalize": fields.take("norm_topk_prob", True),
        "scale": fields.take("routed_scaling_factor", 1.0),
        "groups": fields.take("n_group", None) or 1,
        "top_k_groups": fields.take("topk_group", None) or 1,
        "selection_bias": True,
    }
    dense, layers = fields.take("first_k_dense_replace", 0), values["layers"]
    mlps = [values["mlp"] if layer < dense else moe for layer in range(layers)]
    return {**values, "attention": attention, "mlp": mlps}


def _rope(fields: Fields) -> tuple[dict[str, Any], float]:
    """Values of our `Rope`, and a further factor of the scores."""
    given = dict(take_mapping(fields))
    narrow, wide = given.pop("mscale", None), given.pop("mscale_all_dim", None)
    if narrow and wide:
        given.setdefault("attention_factor", _gain(given, narrow) / _gain(given, wide))
    fields.left["rope_parameters"] = given
    rope = read_rope(fields, fields.left.get("max_position_embeddings", 0))
    return rope, _gain(given, wide) ** 2 if wide else 1.0


def _gain(given: dict[str, Any], share: float) -> float:
    return 0.1 * share * math.log(given["factor"]) + 1.0


def write(config: TransformerConfig) -> dict[str, Any]:
    mla = the_only(config.attention, MLA, "attention", "deepseek_v3")
    moe, mlp, sparse = dense_and_moe(config, "deepseek_v3")
    rope = rope_fields(mla.rope)
    stretch = mla.scale * (mla.head_dim + mla.rope_dim) ** 0.5
    if mla.rope.scaling is not None and stretch > 1.000001:
        share = round((stretch**0.5 - 1.0) / (0.1 * math.log(mla.rope.scaling.factor)), 6)
        for name in ("rope_parameters", "rope_scaling"):
            rope[name] = {**rope[name], "mscale_all_dim": share}
    return {
        **write_decoder(config, mlp, "deepseek_v3"),
        **rope,
        "rope_interleave": True,
        "num_attention_heads": mla.heads,
        "num_key_value_heads": mla.heads,
        "kv_lora_rank": mla.rank,
        "q_lora_rank": mla.query_rank,
        "qk_nope_head_dim": mla.head_dim,
        "qk_rope_head_dim": mla.rope_dim,
        "v_head_dim": mla.value_dim,
        "attention_bias": mla.bias,
        "n_routed_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
        "moe_intermediate_size": moe.hidden,
        "n_shared_experts": moe.shared,
        "norm_topk_prob": moe.normalize,
        "routed_scaling_factor": moe.scale,
        "n_group": moe.groups,
        "topk_group": moe.top_k_groups,
        "first_k_dense_replace": sparse.index(True),
    }


DEEPSEEK_V3 = Family(
    "deepseek_v3",
    read,
    write,
    names,
    "DeepseekV3ForCausalLM",
    "DeepseekV3ForSequenceClassification",
    mtp_layers=True,
    defaults={
        "n_shared_experts": 1,
        "routed_scaling_factor": 2.5,
        "q_lora_rank": 1536,
        "n_group": 8,
        "topk_group": 4,
        "first_k_dense_replace": 3,
    },
)
