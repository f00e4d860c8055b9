"""Qwen2, Qwen2.5 and Qwen3 (arXiv 2407.10671, 2505.09388)."""

from __future__ import annotations

from typing import Any

from culm.convert.family import Family, Fields
from culm.convert.hf.families.decoder import (
    FULL,
    SLIDING,
    in_layers,
    names,
    read_attention,
    read_decoder,
    read_windows,
    write_line,
    write_windows,
)
from culm.model.transformer import TransformerConfig


def _read(fields: Fields, **attention: Any) -> dict[str, Any]:
    values = read_decoder(fields)
    layers, full = values["layers"], fields.take("max_window_layers", 28)
    kinds = [SLIDING if layer >= full else FULL for layer in range(layers)]
    used = fields.take("use_sliding_window", False)
    windows = read_windows(fields, layers, used=used, default=kinds)
    attention = {**read_attention(fields, values["context"]), **attention}
    return {**values, "attention": in_layers(attention, windows)}


def _write(config: TransformerConfig, family: str) -> dict[str, Any]:
    fields, windows = write_line(config, family), write_windows(config)
    used = SLIDING in windows["layer_types"]
    return {**fields, **windows, "use_sliding_window": used}


def read2(fields: Fields) -> dict[str, Any]:
    return _read(fields, bias=True)


def write2(config: TransformerConfig) -> dict[str, Any]:
    return _write(config, "qwen2")


def read3(fields: Fields) -> dict[str, Any]:
    bias = fields.take("attention_bias", False)
    return _read(fields, qk_norm="head", bias=bias, out_bias=bias)


def write3(config: TransformerConfig) -> dict[str, Any]:
    return {**_write(config, "qwen3"), "attention_bias": config.attention[0].out_bias}


DEFAULTS = {"num_key_value_heads": 32, "sliding_window": 4096}
QWEN2 = Family(
    "qwen2", read2, write2, names, "Qwen2ForCausalLM", "Qwen2ForSequenceClassification",
    defaults=DEFAULTS,
)  # fmt: skip
QWEN3 = Family(
    "qwen3", read3, write3, names, "Qwen3ForCausalLM", "Qwen3ForSequenceClassification",
    defaults=DEFAULTS | {"head_dim": 128},
)  # fmt: skip
