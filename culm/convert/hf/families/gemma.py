"""Gemma 2 and 3 (text): norms around both branches (arXiv 2408.00118, 2503.19786)."""

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
    the_only,
    with_ropes,
    write_attention,
    write_decoder,
    write_windows,
)
from culm.convert.hf.rope import read_ropes
from culm.convert.rules import TensorRule, renamed
from culm.model.mlp.gated import GeGLU
from culm.model.transformer import TransformerConfig


def names(config: TransformerConfig) -> list[TensorRule]:
    return renamed(NAMES | SANDWICH)


def _read(fields: Fields, **attention: Any) -> dict[str, Any]:
    values = read_decoder(fields, tied=True, activation="hidden_activation")
    fields.only("use_bidirectional_attention", None, False)
    fields.drop("hidden_act")  # of Gemma 1; its value is not used
    values["norm"] |= {"centered": True}
    bias = fields.take("attention_bias", False)
    softcap = fields.take("attn_logit_softcapping", None)
    scale = fields.take("query_pre_attn_scalar") ** -0.5
    attention |= {"bias": bias, "out_bias": bias, "softcap": softcap, "scale": scale}
    return {
        **values,
        "attention": {**read_attention(fields, values["context"]), **attention},
        "residual": {"norm": "both"},
        "embedding_scale": values["width"] ** 0.5,
        "softcap": fields.take("final_logit_softcapping", None),
    }


def _write(config: TransformerConfig, family: str) -> dict[str, Any]:
    mlp = the_only(config.mlp, GeGLU, "mlp", family)
    fields = write_decoder(config, mlp, family, activation="hidden_activation")
    attention = config.attention[0]
    scalar = round(attention.scale**-2, 6)
    return {
        **fields,
        **write_attention(config, family),
        **write_windows(config),
        "attention_bias": attention.out_bias,
        "attn_logit_softcapping": attention.softcap,
        "final_logit_softcapping": config.softcap,
        "query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar,
    }


def read2(fields: Fields) -> dict[str, Any]:
    windows = read_windows(fields, fields.left["num_hidden_layers"], default=(SLIDING, FULL))
    values = _read(fields)
    return {**values, "attention": in_layers(values["attention"], windows)}


def write2(config: TransformerConfig) -> dict[str, Any]:
    return _write(config, "gemma2")


def read3(fields: Fields) -> dict[str, Any]:
    fields.only("attn_logit_softcapping", None)  # transformers ignores it
    layers, context = fields.left["num_hidden_layers"], fields.left["max_position_embeddings"]
    every = fields.take("sliding_window_pattern", None) or 6
    windows = read_windows(fields, layers, default=(SLIDING,) * (every - 1) + (FULL,))
    local = fields.take("rope_local_base_freq", 10_000.0)
    ropes = read_ropes(fields, context, FULL, SLIDING, local=local)
    values = _read(fields, qk_norm="head")
    return {**values, "attention": in_layers(values["attention"], windows, ropes)}


def write3(config: TransformerConfig) -> dict[str, Any]:
    return with_ropes(_write(config, "gemma3_text"), config)


DEFAULTS = {
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "num_key_value_heads": 4,
    "sliding_window": 4096,
}
GEMMA2 = Family(
    "gemma2",
    read2,
    write2,
    names,
    "Gemma2ForCausalLM",
    "Gemma2ForSequenceClassification",
    defaults={**DEFAULTS, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
)
GEMMA3 = Family(
    "gemma3_text",
    read3,
    write3,
    names,
    "Gemma3ForCausalLM",
    "Gemma3TextForSequenceClassification",
    defaults={**DEFAULTS, "rope_theta": 1_000_000.0},
)
