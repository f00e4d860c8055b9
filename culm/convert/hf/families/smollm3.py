"""SmolLM3: Llama with every fourth layer without rotary embedding (arXiv 2305.19466)."""

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
from culm.convert.hf.rope import rope_fields
from culm.model.attention.gqa import GQA
from culm.model.transformer import TransformerConfig


def read(fields: Fields) -> dict[str, Any]:
    values = read_decoder(fields, tied=True)
    fields.drop("max_window_layers")
    layers, bias = values["layers"], fields.take("attention_bias", False)
    every = fields.take("no_rope_layer_interval", 4)
    rotated = fields.take("no_rope_layers", None) or [(i + 1) % every for i in range(layers)]
    used = fields.take("use_sliding_window", False)
    attention = {**read_attention(fields, values["context"]), "bias": bias, "out_bias": bias}
    kinds = [FULL if with_rope else SLIDING for with_rope in rotated]
    parts = in_layers(attention, read_windows(fields, layers, used=used, default=kinds))
    for part, with_rope in zip(parts, rotated, strict=True):
        part["rope"] = part["rope"] if with_rope else None
    return {**values, "attention": parts}


def write(config: TransformerConfig) -> dict[str, Any]:
    fields, windows = write_line(config, "smollm3"), write_windows(config)
    ropes = [part.rope for part in config.attentions if isinstance(part, GQA)]
    used = next((rope for rope in ropes if rope), None)
    return {
        **fields,
        **(rope_fields(used) if used else {}),
        **windows,
        "use_sliding_window": SLIDING in windows["layer_types"],
        "attention_bias": config.attention[0].out_bias,
        "mlp_bias": False,
        "no_rope_layers": [int(rope is not None) for rope in ropes],
    }


SMOLLM3 = Family(
    "smollm3", read, write, names, "SmolLM3ForCausalLM", "SmolLM3ForSequenceClassification",
    defaults={"num_key_value_heads": 4, "rope_theta": 2e6},
)  # fmt: skip
