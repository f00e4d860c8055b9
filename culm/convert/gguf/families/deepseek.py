"""DeepSeek-V3 in GGUF: to llama.cpp its latents are one head of keys and values."""

from __future__ import annotations

import math
from typing import Any

from culm.convert.family import Family, Fields
from culm.convert.gguf.families.metadata import NAMES, read_common, read_rope, write_rope
from culm.convert.hf.families.decoder import dense_and_moe, the_only
from culm.convert.hf.families.deepseek import rotated_rules
from culm.convert.rules import TensorRule, renamed
from culm.model.attention.mla import MLA
from culm.model.transformer import TransformerConfig

SIGMOID = 2  # of `expert_gating_func`
TABLE = NAMES | {
    "blocks.#.attention.query_latent": "blk.#.attn_q_a",
    "blocks.#.attention.query_norm": "blk.#.attn_q_a_norm",
    "blocks.#.attention.latent_norm": "blk.#.attn_kv_a_norm",
    "blocks.#.mlp.router.weight": "blk.#.ffn_gate_inp.weight",
    "blocks.#.mlp.router.selection": "blk.#.exp_probs_b.bias",
    "blocks.#.mlp.shared.gate": "blk.#.ffn_gate_shexp",
    "blocks.#.mlp.shared.up": "blk.#.ffn_up_shexp",
    "blocks.#.mlp.shared.down": "blk.#.ffn_down_shexp",
}
OTHER = ("attention.q", "attention.k", "attention.v", "mlp.router")


def _names(config: TransformerConfig) -> list[TensorRule]:
    mla = the_only(config.attention, MLA, "attention", "deepseek2")
    heads, ours, theirs = mla.heads, "blocks.#.attention", "blk.#.attn"
    return [
        *renamed({name: other for name, other in TABLE.items() if not name.endswith(OTHER)}),
        *rotated_rules(mla, f"{theirs}_q_b", f"{theirs}_kv_a_mqa"),
        TensorRule(
            (f"{ours}.k",),
            (f"{theirs}_k_b",),
            lambda t: [t[0].transpose(1, 2).flatten(0, 1)],
            lambda t: [t[0].unflatten(0, (heads, -1)).transpose(1, 2)],
        ),
        TensorRule(
            (f"{ours}.v",),
            (f"{theirs}_v_b",),
            lambda t: [t[0].flatten(0, 1)],
            lambda t: [t[0].unflatten(0, (heads, -1))],
        ),
    ]


def _read(fields: Fields) -> dict[str, Any]:
    rotated, gating = fields.left.get("rope.dimension_count"), fields.take("expert_gating_func", 0)
    fields.drop("attention.key_length", "attention.head_count_kv")
    values = read_common(fields, partial=True)
    log = fields.take("rope.scaling.yarn_log_multiplier", 0.0)
    rope, whole = read_rope(fields), fields.take("attention.key_length_mla")
    stretch = 1.0
    if "scaling" in rope:  # as with `mscale` and `mscale_all_dim`, which are equal in the models
        rope["scaling"]["attention"] = 1.0
        stretch = (1.0 + log * math.log(rope["scaling"]["factor"])) ** 2
    hidden, dense = fields.take("feed_forward_length"), fields.take("leading_dense_block_count", 0)
    moe = {
        "kind": "moe",
        "experts": fields.take("expert_count"),
        "top_k": fields.take("expert_used_count"),
        "hidden": fields.take("expert_feed_forward_length"),
        "shared": fields.take("expert_shared_count", 0),
        "scores": "sigmoid" if gating == SIGMOID else "softmax",
        "normalize": fields.take("expert_weights_norm", False),
        "scale": fields.take("expert_weights_scale", 1.0),
        "groups": fields.take("expert_group_count", 1),
        "top_k_groups": fields.take("expert_group_used_count", 1),
        "selection_bias": gating == SIGMOID,
    }
    attention = {
        "kind": "mla",
        "heads": values["attention"]["heads"],
        "rank": fields.take("attention.kv_lora_rank"),
        "query_rank": fields.take("attention.q_lora_rank"),
        "head_dim": whole - rotated,
        "rope_dim": rotated,
        "value_dim": fields.take("attention.value_length_mla"),
        "rope": rope,
        "scale": whole**-0.5 * stretch,
    }
    plain = {"kind": "swiglu", "hidden": hidden}
    mlps = [plain if layer < dense else moe for layer in range(values["layers"])]
    return {**values, "attention": attention, "mlp": mlps}


def _write(config: TransformerConfig) -> dict[str, Any]:
    mla = the_only(config.attention, MLA, "attention", "deepseek2")
    moe, dense, sparse = dense_and_moe(config, "deepseek2")
    whole, rope = mla.head_dim + mla.rope_dim, write_rope(mla.rope)
    if mla.rope.scaling is not None:
        stretch = (mla.scale * whole**0.5) ** 0.5
        log = round((stretch - 1.0) / math.log(mla.rope.scaling.factor), 7)
        rope["rope.scaling.yarn_log_multiplier"] = log
    fields = {
        "vocabulary": config.vocabulary,
        "tied": config.tied,
        "embedding_length": config.width,
        "block_count": config.layers,
        "context_length": config.context,
        "feed_forward_length": dense.hidden,
        "leading_dense_block_count": sparse.index(True),
        "attention.head_count": mla.heads,
        "attention.head_count_kv": 1,
        "attention.layer_norm_rms_epsilon": config.norm.eps,
        "attention.q_lora_rank": mla.query_rank,
        "attention.kv_lora_rank": mla.rank,
        "attention.key_length": mla.rank + mla.rope_dim,
        "attention.value_length": mla.rank,
        "attention.key_length_mla": whole,
        "attention.value_length_mla": mla.value_dim,
        "rope.dimension_count": mla.rope_dim,
        "expert_count": moe.experts,
        "expert_used_count": moe.top_k,
        "expert_feed_forward_length": moe.hidden,
        "expert_shared_count": moe.shared,
        "expert_weights_scale": float(moe.scale),
        "expert_weights_norm": moe.normalize,
        "expert_gating_func": SIGMOID if moe.scores == "sigmoid" else 1,
        "expert_group_count": moe.groups,
        "expert_group_used_count": moe.top_k_groups,
        **rope,
    }
    return {name: value for name, value in fields.items() if value is not None}


DEEPSEEK = Family("deepseek2", _read, _write, _names)
