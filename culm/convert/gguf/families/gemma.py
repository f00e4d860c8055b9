"""Gemma 2 and 3 in GGUF."""

from __future__ import annotations

from typing import Any

from culm.convert.family import Family, Fields
from culm.convert.gguf.families.metadata import (
    NAMES,
    OUT_NORMS,
    read_common,
    read_rope,
    write_common,
    write_rope,
)
from culm.convert.hf.families.decoder import in_layers, the_only
from culm.convert.rules import TensorRule, renamed
from culm.model.attention.gqa import GQA
from culm.model.mlp.gated import GeGLU
from culm.model.transformer import TransformerConfig


def _read_gemma(
    fields: Fields, every: int, largest: int, local: float | None, **more: Any
) -> dict[str, Any]:
    """llama.cpp has in its code: scales, the pattern of windows, and the base of those with one.

    largest: the number of layers by which it knows the model of 27B, whose scale is by the width.
    local: that base, if it is another. more: of attention.
    """
    values, rope = read_common(fields), read_rope(fields)
    values["norm"] |= {"centered": True}
    values["tied"] = True  # a separate head is not read
    window = fields.take("attention.sliding_window", None)
    attention = values["attention"] | more
    if values["layers"] == largest:
        attention["scale"] = (values["width"] // attention["heads"]) ** -0.5
    ropes = (rope, rope if local is None else {"base": local})
    windows = [window if (i + 1) % every else None for i in range(values["layers"])]
    return {
        **values,
        "attention": in_layers(attention, windows, ropes),
        "mlp": {"kind": "geglu", "hidden": fields.take("feed_forward_length")},
        "residual": {"norm": "both"},
        "embedding_scale": values["width"] ** 0.5,
    }


def _read_gemma2(fields: Fields) -> dict[str, Any]:
    softcap = fields.take("attn_logit_softcapping", None)
    final = fields.take("final_logit_softcapping", None)
    return {**_read_gemma(fields, 2, 46, None, softcap=softcap), "softcap": final}


def _read_gemma3(fields: Fields) -> dict[str, Any]:
    fields.drop("attn_logit_softcapping")  # llama.cpp ignores it
    local = fields.take("rope.freq_base_swa", 10_000.0)
    final = fields.take("final_logit_softcapping", None)
    return {**_read_gemma(fields, 6, 62, local, qk_norm="head"), "softcap": final}


def _write_gemma2(config: TransformerConfig, family: str = "gemma2") -> dict[str, Any]:
    parts = [part for part in config.attentions if isinstance(part, GQA)]
    wide = [part for part in parts if part.window is None]
    fields = {
        **write_common(config, family),
        **write_rope((wide or parts or [GQA(heads=1)])[-1].rope),
        "attention.sliding_window": next((p.window for p in parts if p.window), None),
        "feed_forward_length": the_only(config.mlp, GeGLU, "mlp", family).hidden,
        "attn_logit_softcapping": config.attention[0].softcap,
        "final_logit_softcapping": config.softcap,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _write_gemma3(config: TransformerConfig) -> dict[str, Any]:
    return _write_gemma2(config, "gemma3")


def _gemma_names(config: TransformerConfig) -> list[TensorRule]:
    """GGUF stores norms around one, we store them around zero."""
    table = NAMES | OUT_NORMS
    norms = {ours: theirs for ours, theirs in table.items() if ours.endswith("norm")}
    rest = {ours: theirs for ours, theirs in table.items() if ours not in norms}
    return [
        *renamed(rest),
        *(
            TensorRule((ours,), (theirs,), lambda t: [t[0] - 1.0], lambda t: [t[0].float() + 1.0])
            for ours, theirs in norms.items()
        ),
    ]


# What llama.cpp takes for keys that a file lacks, as the first files of Gemma 2 do.
GEMMA2 = {
    "attention.sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
GEMMA = (
    Family("gemma2", _read_gemma2, _write_gemma2, _gemma_names, defaults=GEMMA2),
    Family("gemma3", _read_gemma3, _write_gemma3, _gemma_names),
)
