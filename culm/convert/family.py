"""Which family of other libraries' models one of ours belongs to.

llama   no query-key norm, no bias           q and k of GGUF in the interleaved layout
qwen2   bias on q, k and v
qwen3   query-key norm, no bias
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from culm.config import SettingError
from culm.model.rope import Rope
from culm.model.transformer import TransformerConfig

Family = Literal["llama", "qwen2", "qwen3"]


@dataclass(frozen=True)
class Shape:
    """What the families' settings files hold, beyond our config's own numbers."""

    family: Family
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    rope: Rope


def shape_of(config: TransformerConfig, target: str) -> Shape:
    """The family of a config and its numbers.

    Raises:
        SettingError: no family of `target` has this shape; the message names the setting.
    """
    kinds, mlps = set(config.attentions), {mlp.inner(config.width) for mlp in config.mlps}
    if len(kinds) > 1 or len(mlps) > 1:
        part = "attention" if len(kinds) > 1 else "mlp"
        raise SettingError(f"model.{part}: layers differ, which no {target} family here expresses")
    attention = config.attentions[0]
    if attention.window is not None:
        raise SettingError(f"model.attention.window: no {target} family here expresses a window")
    if attention.bias and attention.qk_norm:
        raise SettingError(f"model.attention.bias: no {target} family has it beside qk_norm")
    return Shape(
        family="qwen3" if attention.qk_norm else "qwen2" if attention.bias else "llama",
        heads=attention.heads,
        kv_heads=attention.kv_heads or attention.heads,
        head_dim=attention.dim(config.width),
        hidden=mlps.pop(),
        rope=attention.rope,
    )


def interleaved(rows: Tensor, heads: int) -> Tensor:
    """Rows of q or k, weight or bias, from our half-split layout: 0, D/2, 1, D/2 + 1, ..."""
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def half_split(rows: Tensor, heads: int) -> Tensor:
    """The inverse of `interleaved`: pairs of neighbours become pairs half a head apart."""
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
