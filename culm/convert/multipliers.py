"""Factors of a scaling rule, folded into the weights for formats that have no such rule."""

from __future__ import annotations

from torch import Tensor

from culm.model.attention.gqa import GQA
from culm.model.attention.mla import MLA
from culm.model.norm import RMSNormConfig, rescaled
from culm.model.transformer import TransformerConfig

BRANCHES = ("out", "down")  # the layers whose outputs are those of a branch
BRANCH_NORMS = ("attention_out_norm", "mlp_out_norm")


def plain_config(config: TransformerConfig) -> TransformerConfig:
    """The settings for weights that are `folded`."""
    return config.model_copy(update={"scaling": None})


def folded(config: TransformerConfig, name: str, tensor: Tensor) -> Tensor:
    """A weight times its factor from the scaling rule of these settings."""
    if config.scaling is None:
        return tensor
    module, _, part = name.rpartition(".")
    factor = _factor(config, module)
    if factor == 1.0:
        return tensor
    centered = isinstance(config.norm, RMSNormConfig) and config.norm.centered
    normalizes = module.endswith("norm") and part == "weight"
    return rescaled(tensor, factor, centered and normalizes)


def _factor(config: TransformerConfig, module: str) -> float:
    rule, last = config.scaling, module.rpartition(".")[2]
    assert rule is not None
    if module == "norm":
        return 1 / rule.widths(config.width)
    if not module.startswith("blocks."):
        return 1.0
    behind = config.residual.norm != "before"
    if last in BRANCH_NORMS if behind else last in BRANCHES:
        return 1 / rule.depths(config.layers)
    attention = config.attentions[int(module.split(".")[1])]
    if isinstance(attention, GQA | MLA):
        normed = isinstance(attention, GQA) and attention.qk_norm is not None
        if last == ("q_norm" if normed else "q"):
            given = attention.resolved(config.width)
            scaled = given.rescaled(config.width, rule.base_head_dim)
            assert given.scale is not None
            assert scaled.scale is not None
            return scaled.scale / given.scale
    return 1.0
