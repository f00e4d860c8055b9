"""GPT-OSS in GGUF: every second layer has a window, all have sinks and experts."""

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
from culm.convert.hf.families.decoder import in_layers, the_only
from culm.convert.rules import TensorRule, renamed
from culm.model.mlp.moe import MoE
from culm.model.rope import YaRNScaling
from culm.model.transformer import TransformerConfig


def _read(fields: Fields) -> dict[str, Any]:
    """llama.cpp rounds the ends of the YaRN ramp; the models do not."""
    values, rope = read_common(fields), read_rope(fields)
    if "scaling" in rope:
        rope["scaling"]["truncate"] = False
    attention = values["attention"] | {
        "rope": rope,
        "bias": True,
        "out_bias": True,
        "sink_logits": True,
    }
    window = fields.take("attention.sliding_window")
    windows = [None if layer % 2 else window for layer in range(values["layers"])]
    moe = {
        "kind": "moe",
        "experts": fields.take("expert_count"),
        "top_k": fields.take("expert_used_count"),
        "hidden": fields.take("expert_feed_forward_length"),
        "activation": "clamped",
        "bias": True,
    }
    fields.drop("feed_forward_length")
    return {**values, "attention": in_layers(attention, windows), "mlp": moe}


def _write(config: TransformerConfig) -> dict[str, Any]:
    fields, moe = write_common(config, "gpt-oss"), the_only(config.mlp, MoE, "mlp", "gpt-oss")
    rope = config.attention[0].rope
    if rope is not None and isinstance(rope.scaling, YaRNScaling):
        rounded = rope.scaling.model_copy(update={"truncate": True})
        rope = rope.model_copy(update={"scaling": rounded})
    return {
        **fields,
        **write_rope(rope),
        "attention.sliding_window": config.attention[0].window or 0,
        "feed_forward_length": moe.hidden,
        "expert_count": moe.experts,
        "expert_used_count": moe.top_k,
        "expert_feed_forward_length": moe.hidden,
    }


def _names(config: TransformerConfig) -> list[TensorRule]:
    sinks = TensorRule(("blocks.#.attention.sinks",), ("blk.#.attn_sinks.weight",))
    return [*renamed(NAMES | {"blocks.#.mlp_norm": "blk.#.post_attention_norm"}), sinks]


GPT_OSS = Family("gpt-oss", _read, _write, _names, own_head=True)
