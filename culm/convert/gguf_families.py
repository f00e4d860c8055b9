"""Families of GGUF files: the metadata behind `general.architecture` and the names of tensors.

What llama.cpp holds to be the same in all models of a family (every sixth layer of Gemma 3 sees
all) is said here by reading, and held against a model of ours by `family_of`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from culm.config import SettingError
from culm.convert.families.decoder import dense_and_moe, in_layers, the_only
from culm.convert.family import Family, Fields
from culm.convert.rules import Rule, half_split, interleaved, join, renamed, split
from culm.model.attention.gqa import GQA
from culm.model.mlp.gated import GeGLU, SwiGLU
from culm.model.mlp.moe import MoE
from culm.model.mlp.plain import Plain
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


# -- settings ---------------------------------------------------------------------------------


def _read_common(fields: Fields) -> dict[str, Any]:
    fields.drop("vocab_size", "rope.dimension_count", "attention.value_length")
    rms = fields.take("attention.layer_norm_rms_epsilon", None)
    eps = fields.take("attention.layer_norm_epsilon", None) if rms is None else rms
    heads = fields.take("attention.head_count")
    return {
        "vocabulary": fields.take("vocabulary"),
        "width": fields.take("embedding_length"),
        "layers": fields.take("block_count"),
        "context": fields.take("context_length"),
        "norm": {"kind": "layer" if rms is None else "rms", "eps": eps},
        "tied": fields.take("tied"),
        "attention": {
            "kind": "gqa",
            "heads": heads,
            "kv_heads": fields.take("attention.head_count_kv", heads),
            "head_dim": fields.take("attention.key_length", None),
        },
    }


def _write_common(config: TransformerConfig, family: str) -> dict[str, Any]:
    attention = the_only(config.attention, GQA, "attention", family)
    rms = isinstance(config.norm, RMSNormConfig)
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


def _read_rope(fields: Fields) -> dict[str, Any]:
    kind = fields.take("rope.scaling.type", "none")
    rope: dict[str, Any] = {"base": fields.take("rope.freq_base", 10_000.0)}
    factor = fields.take("rope.scaling.factor", 1.0)
    original = fields.take("rope.scaling.original_context_length", None)
    if kind == "linear":
        rope["scaling"] = {"kind": "linear", "factor": factor}
    elif kind == "yarn":
        rope["scaling"] = {"kind": "yarn", "factor": factor, "original": original}
    elif kind != "none":
        raise SettingError(f"rope.scaling.type: {kind!r} is not one of none, linear, yarn")
    if (llama3 := fields.take("llama3", None)) is not None:
        rope["scaling"] = llama3
    return rope


def _write_rope(rope: Rope | None) -> dict[str, Any]:
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


def _line(attention: Mapping[str, Any], dense: bool = True, sparse: bool = False) -> Any:
    """Reads the settings of a Llama-like family whose attention has these settings.

    dense, sparse: whether it may be without experts, and with them.
    """

    def read(fields: Fields) -> dict[str, Any]:
        values = _read_common(fields)
        values["attention"] |= {"rope": _read_rope(fields), **attention}
        hidden, experts = fields.take("feed_forward_length", None), fields.take("expert_count", 0)
        if not (sparse if experts else dense):
            raise SettingError(f"expert_count: {experts} experts are not what this family has")
        values["mlp"] = {"kind": "swiglu", "hidden": hidden}
        if experts:
            values["mlp"] = {
                "kind": "moe",
                "experts": experts,
                "chosen": fields.take("expert_used_count"),
                "hidden": fields.take("expert_feed_forward_length", hidden),
            }
        return values

    return read


def _line_writer(family: str) -> Any:
    def write(config: TransformerConfig) -> dict[str, Any]:
        fields = _write_common(config, family) | _write_rope(config.attention[0].rope)
        if any(isinstance(mlp, MoE) for mlp in config.mlp):
            moe, dense, _ = dense_and_moe(config, family)
            return fields | {
                "feed_forward_length": dense.hidden,
                "expert_count": moe.experts,
                "expert_used_count": moe.chosen,
                "expert_feed_forward_length": moe.hidden,
            }
        mlp = the_only(config.mlp, SwiGLU, "mlp", family)
        return fields | {"feed_forward_length": mlp.hidden}

    return write


def _read_gemma(fields: Fields, every: int) -> dict[str, Any]:
    """Llama.cpp knows itself: scales, the pattern of windows, and the base of those with one."""
    values, rope = _read_common(fields), _read_rope(fields)
    values["norm"] |= {"centered": True}
    window = fields.take("attention.sliding_window", None)
    softcap = fields.take("attn_logit_softcapping", None)
    attention = values["attention"] | {"softcap": softcap, "rope": rope}
    windows = [window if (i + 1) % every else None for i in range(values["layers"])]
    return {
        **values,
        "attention": in_layers(attention, windows),
        "mlp": {"kind": "geglu", "hidden": fields.take("feed_forward_length")},
        "residual": {"norm": "both"},
        "embedding_scale": values["width"] ** 0.5,
        "softcap": fields.take("final_logit_softcapping", None),
    }


def _read_gemma2(fields: Fields) -> dict[str, Any]:
    return _read_gemma(fields, 2)


def _read_gemma3(fields: Fields) -> dict[str, Any]:
    local = fields.take("rope.freq_base_swa", 10_000.0)
    values = _read_gemma(fields, 6)
    for part in values["attention"]:
        part["qk_norm"] = "head"
        part["rope"] = {"base": local} if part["window"] else part["rope"]
    return values


def _write_gemma2(config: TransformerConfig, family: str = "gemma2") -> dict[str, Any]:
    parts = [part for part in config.attentions if isinstance(part, GQA)]
    wide = [part for part in parts if part.window is None]
    fields = {
        **_write_common(config, family),
        **_write_rope((wide or parts or [GQA(heads=1)])[-1].rope),
        "attention.sliding_window": next((p.window for p in parts if p.window), None),
        "feed_forward_length": the_only(config.mlp, GeGLU, "mlp", family).hidden,
        "attn_logit_softcapping": config.attention[0].softcap,
        "final_logit_softcapping": config.softcap,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _write_gemma3(config: TransformerConfig) -> dict[str, Any]:
    return _write_gemma2(config, "gemma3")


def _read_gpt2(fields: Fields) -> dict[str, Any]:
    values = _read_common(fields)
    values["attention"] |= {"rope": None, "bias": True, "out_bias": True}
    hidden = fields.take("feed_forward_length")
    mlp = {"kind": "plain", "hidden": hidden, "activation": "gelu_tanh", "bias": True}
    return {**values, "mlp": mlp, "learned_positions": True}


def _write_gpt2(config: TransformerConfig) -> dict[str, Any]:
    if not isinstance(config.norm, LayerNormConfig):
        raise SettingError(f"model.norm: gpt2 models have no {config.norm.kind!r}")
    mlp = the_only(config.mlp, Plain, "mlp", "gpt2")
    return {**_write_common(config, "gpt2"), "feed_forward_length": mlp.hidden}


# -- names ------------------------------------------------------------------------------------


def _line_names(config: TransformerConfig) -> list[Rule]:
    return renamed(NAMES)


def _llama_names(config: TransformerConfig) -> list[Rule]:
    """Llama.cpp keeps q and k of this family in the interleaved layout."""
    attention = the_only(config.attention, GQA, "attention", "llama")
    heads = {"blocks.#.attention.q": attention.heads, "blocks.#.attention.k": attention.kv_heads}
    rest = {ours: theirs for ours, theirs in NAMES.items() if ours not in heads}
    return [*renamed(rest), *(_turned(ours, NAMES[ours], count) for ours, count in heads.items())]


def _turned(ours: str, theirs: str, heads: int) -> Rule:
    def read(tensors: list[Tensor]) -> list[Tensor]:
        if len(tensors[0]) % (2 * heads):
            raise SettingError(f"{theirs} has {len(tensors[0])} rows, not those of {heads} heads")
        return [half_split(tensors[0], heads)]

    return Rule((ours,), (theirs,), read, lambda tensors: [interleaved(tensors[0], heads)])


def _gemma_names(config: TransformerConfig) -> list[Rule]:
    """Norms are stored around one there, around zero here."""
    table = NAMES | {
        "blocks.#.attention_out_norm": "blk.#.post_attention_norm",
        "blocks.#.mlp_out_norm": "blk.#.post_ffw_norm",
    }
    norms = {ours: theirs for ours, theirs in table.items() if ours.endswith("norm")}
    rest = {ours: theirs for ours, theirs in table.items() if ours not in norms}
    return [
        *renamed(rest),
        *(
            Rule((ours,), (theirs,), lambda t: [t[0] - 1.0], lambda t: [t[0].float() + 1.0])
            for ours, theirs in norms.items()
        ),
    ]


def _gpt2_names(config: TransformerConfig) -> list[Rule]:
    whole = tuple(f"blocks.#.attention.{part}" for part in "qkv")
    rest = {ours: theirs for ours, theirs in NAMES.items() if ours not in whole}
    sizes = (config.width,) * 3
    fused = Rule(whole, ("blk.#.attn_qkv",), split(*sizes), join)
    return [*renamed(rest | {"positions": "position_embd"}), fused]


QWEN2, QWEN3 = {"bias": True}, {"qk_norm": "head"}
QWEN_MOE = _line(QWEN3, dense=False, sparse=True)
FAMILIES = (
    Family("llama", "", _line({}, sparse=True), _line_writer("llama"), _llama_names),
    Family("qwen2", "", _line(QWEN2), _line_writer("qwen2"), _line_names),
    Family("qwen3", "", _line(QWEN3), _line_writer("qwen3"), _line_names),
    Family("qwen3moe", "", QWEN_MOE, _line_writer("qwen3moe"), _line_names),
    Family("gemma2", "", _read_gemma2, _write_gemma2, _gemma_names),
    Family("gemma3", "", _read_gemma3, _write_gemma3, _gemma_names),
    Family("gpt2", "", _read_gpt2, _write_gpt2, _gpt2_names),
)


def factors_of(rope: Rope, head_dim: int) -> Tensor:
    """(D/2,) fp32: how many times slower each pair turns than without scaling."""
    plain = Rope(base=rope.base).frequencies(rope.turned(head_dim))
    return (plain / rope.frequencies(rope.turned(head_dim))).to(torch.float32)
