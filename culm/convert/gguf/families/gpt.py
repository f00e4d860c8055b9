"""GPT-2, GPT-NeoX and Pythia in GGUF: LayerNorm, biases, one matrix for q, k and v."""

from __future__ import annotations

from typing import Any

from culm.convert.family import Family, Fields
from culm.convert.gguf.families.metadata import (
    NAMES,
    read_common,
    read_rope,
    write_common,
    write_rope,
)
from culm.convert.hf.families.decoder import the_only
from culm.convert.rules import TensorRule, join, renamed, split
from culm.model.mlp.plain import Plain
from culm.model.norm import LayerNormConfig
from culm.model.transformer import TransformerConfig

# Every head has its own keys, whose size follows from the width.
PLAIN = {"head_dim": None, "kv_heads": None, "bias": True, "out_bias": True}


def _read_gpt2(fields: Fields) -> dict[str, Any]:
    values = read_common(fields)
    values["attention"] |= {"rope": None, **PLAIN}
    hidden = fields.take("feed_forward_length")
    mlp = {"kind": "plain", "hidden": hidden, "activation": "gelu_tanh", "bias": True}
    return {**values, "mlp": mlp, "learned_positions": True}


def _write_gpt2(config: TransformerConfig, family: str = "gpt2") -> dict[str, Any]:
    mlp = the_only(config.mlp, Plain, "mlp", family)
    return {**write_common(config, family, LayerNormConfig), "feed_forward_length": mlp.hidden}


def _read_neox(fields: Fields) -> dict[str, Any]:
    rotated = fields.left.get("rope.dimension_count")
    values = read_common(fields, partial=True)
    attention, hidden = values["attention"], fields.take("feed_forward_length")
    dim = values["width"] // attention["heads"]
    rope = read_rope(fields) | {"fraction": (rotated or dim) / dim}
    return {
        **values,
        "attention": {**attention, "rope": rope, **PLAIN},
        "mlp": {"kind": "plain", "hidden": hidden, "activation": "gelu", "bias": True},
        "residual": {"parallel": fields.take("use_parallel_residual", True)},
    }


def _write_neox(config: TransformerConfig) -> dict[str, Any]:
    fields, rope = _write_gpt2(config, "gptneox"), config.attention[0].rope
    rotated = {} if rope is None else {"rope.dimension_count": config.attention[0].rotary(0)[1]}
    parallel = {"use_parallel_residual": config.residual.parallel}
    return {**fields, **write_rope(rope), **rotated, **parallel}


def _gpt2_names(config: TransformerConfig) -> list[TensorRule]:
    whole = tuple(f"blocks.#.attention.{part}" for part in "qkv")
    rest = {ours: theirs for ours, theirs in NAMES.items() if ours not in whole}
    sizes = (config.width,) * 3
    fused = TensorRule(whole, ("blk.#.attn_qkv",), split(*sizes), join)
    return [*renamed(rest | {"positions": "position_embd"}), fused]


GPT = (
    Family("gpt2", _read_gpt2, _write_gpt2, _gpt2_names),
    Family("gptneox", _read_neox, _write_neox, _gpt2_names, own_head=True),
)
