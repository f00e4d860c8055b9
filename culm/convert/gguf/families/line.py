"""The Llama line in GGUF: Llama, Mixtral, Qwen2, Qwen3, Qwen3-MoE, SmolLM3, OLMo 2 and 3."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from culm.config import SettingError
from culm.convert.family import Family, Fields
from culm.convert.gguf.families.metadata import (
    NAMES,
    OUT_NORMS,
    read_common,
    read_rope,
    write_common,
    write_rope,
)
from culm.convert.hf.families.decoder import dense_and_moe, in_layers, the_only
from culm.convert.rules import TensorRule, half_split, interleaved, renamed
from culm.model.attention.gqa import GQA
from culm.model.mlp.gated import SwiGLU
from culm.model.mlp.moe import MoE
from culm.model.transformer import TransformerConfig

Read = Callable[[Fields], dict[str, Any]]
Write = Callable[[TransformerConfig], dict[str, Any]]


def _line(
    attention: Mapping[str, Any], dense: bool = True, sparse: bool = False, llama3: bool = False
) -> Read:
    """A function that reads the settings of a Llama-like family with this attention.

    dense, sparse: whether models without and with experts are allowed. llama3: as in `read_rope`.
    """

    def read(fields: Fields) -> dict[str, Any]:
        values = read_common(fields)
        values["attention"] |= {"rope": read_rope(fields, llama3), **attention}
        hidden, experts = fields.take("feed_forward_length", None), fields.take("expert_count", 0)
        if not (sparse if experts else dense):
            raise SettingError(f"expert_count: {experts} experts do not fit this family")
        values["mlp"] = {"kind": "swiglu", "hidden": hidden}
        if experts:
            values["mlp"] = {
                "kind": "moe",
                "experts": experts,
                "top_k": fields.take("expert_used_count"),
                "hidden": fields.take("expert_feed_forward_length", hidden),
            }
        return values

    return read


def _line_writer(family: str) -> Write:
    def write(config: TransformerConfig) -> dict[str, Any]:
        fields = write_common(config, family) | write_rope(config.attention[0].rope)
        if any(isinstance(mlp, MoE) for mlp in config.mlp):
            moe, dense, _ = dense_and_moe(config, family)
            return fields | {
                "feed_forward_length": dense.hidden,
                "expert_count": moe.experts,
                "expert_used_count": moe.top_k,
                "expert_feed_forward_length": moe.hidden,
            }
        mlp = the_only(config.mlp, SwiGLU, "mlp", family)
        return fields | {"feed_forward_length": mlp.hidden}

    return write


def _read_smollm3(fields: Fields) -> dict[str, Any]:
    """Every fourth layer is without rotary embedding."""
    values = _line({})(fields)
    rotated = values["attention"]
    parts = [rotated if (i + 1) % 4 else {**rotated, "rope": None} for i in range(values["layers"])]
    return {**values, "attention": parts}


def _read_olmo2(fields: Fields) -> dict[str, Any]:
    """A model with a window is OLMo 3, where every fourth layer has no window."""
    window = fields.take("attention.sliding_window", None)
    values = _line({"qk_norm": "width"})(fields)
    windows = [window if (i + 1) % 4 else None for i in range(values["layers"])]
    values["attention"]["head_dim"] = None  # llama.cpp takes it from the width
    rope = values["attention"]["rope"]
    # llama.cpp scales the rotary embedding of layers without a window alone.
    parts = in_layers(values["attention"], windows, (rope, {"base": rope["base"]}))
    return {**values, "attention": parts, "residual": {"norm": "behind"}}


def _write_olmo2(config: TransformerConfig) -> dict[str, Any]:
    parts = [part for part in config.attentions if isinstance(part, GQA)]
    window = next((part.window for part in parts if part.window), None)
    wide = [part.rope for part in parts if part.window is None and part.rope]
    fields = _line_writer("olmo2")(config) | write_rope(wide[0] if wide else None)
    return fields if window is None else {**fields, "attention.sliding_window": window}


def _line_names(config: TransformerConfig) -> list[TensorRule]:
    return renamed(NAMES)


def _llama_names(config: TransformerConfig) -> list[TensorRule]:
    """llama.cpp stores q and k of this family in the interleaved layout."""
    attention = the_only(config.attention, GQA, "attention", "llama")
    heads = {"blocks.#.attention.q": attention.heads, "blocks.#.attention.k": attention.kv_heads}
    rest = {ours: theirs for ours, theirs in NAMES.items() if ours not in heads}
    return [*renamed(rest), *(_rotated(ours, NAMES[ours], count) for ours, count in heads.items())]


def _rotated(ours: str, theirs: str, heads: int) -> TensorRule:
    def read(tensors: list[Tensor]) -> list[Tensor]:
        if len(tensors[0]) % (2 * heads):
            raise SettingError(f"{theirs} has {len(tensors[0])} rows, not those of {heads} heads")
        return [half_split(tensors[0], heads)]

    return TensorRule((ours,), (theirs,), read, lambda tensors: [interleaved(tensors[0], heads)])


def _olmo2_names(config: TransformerConfig) -> list[TensorRule]:
    return renamed(NAMES | OUT_NORMS)


# Of Qwen2 the size of a head is taken from the width.
QWEN2, QWEN3 = {"bias": True, "head_dim": None}, {"qk_norm": "head"}
SPARSE = _line(QWEN3, dense=False, sparse=True)
LINE = (
    Family("llama", _line({}, sparse=True, llama3=True), _line_writer("llama"), _llama_names),
    Family("qwen2", _line(QWEN2), _line_writer("qwen2"), _line_names),
    Family("qwen3", _line(QWEN3), _line_writer("qwen3"), _line_names),
    Family("qwen3moe", SPARSE, _line_writer("qwen3moe"), _line_names),
    Family("smollm3", _read_smollm3, _line_writer("smollm3"), _llama_names),
    Family("olmo2", _read_olmo2, _write_olmo2, _olmo2_names, own_head=True),
)
