"""GPT-OSS: sinks, windows in every second layer, experts with biases (arXiv 2508.10925)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from culm.config import SettingError
from culm.convert.family import Family, Fields
from culm.convert.hf.families.decoder import (
    FULL,
    NAMES,
    SLIDING,
    in_layers,
    read_attention,
    read_balance_loss,
    read_decoder,
    read_windows,
    the_only,
    write_attention,
    write_balance_loss,
    write_decoder,
    write_windows,
)
from culm.convert.rules import TensorRule, renamed
from culm.model.mlp.gated import SwiGLU
from culm.model.mlp.moe import MoE
from culm.model.transformer import TransformerConfig

MLP, OURS = "model.layers.#.mlp", "blocks.#.mlp.experts"
PLAIN = NAMES | {
    "blocks.#.attention.sinks": "model.layers.#.self_attn.sinks",
    "blocks.#.mlp.router": f"{MLP}.router",
    f"{OURS}.down.bias": f"{MLP}.experts.down_proj_bias",
}


# What transformers takes where a file has no scaling.
SCALING = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
# The sixteen numbers of four bits with two bits of exponent (OCP Microscaling 1.0).
LEVELS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def from_mxfp4(blocks: Tensor, scales: Tensor) -> Tensor:
    """blocks: (..., groups, 16) with two numbers per byte, the lower first; scales: (..., groups).

    Returns (..., groups * 32) in bf16, exactly, since scales are powers of two.
    """
    levels = torch.tensor(LEVELS, dtype=torch.bfloat16)
    pairs = torch.stack((blocks & 15, blocks >> 4), -1).flatten(-2)
    return torch.ldexp(levels[pairs.int()], scales[..., None].int() - 127).flatten(-2)


def names(config: TransformerConfig) -> list[TensorRule]:
    """Their matrices are (experts, inputs, outputs), with alternating rows of gate and up.

    The published MXFP4 files have (experts, outputs, inputs); these are only read.
    """

    def unpacked(tensors: list[Tensor]) -> list[Tensor]:
        return [from_mxfp4(*tensors)]

    def unpacked_halves(tensors: list[Tensor]) -> list[Tensor]:
        joined = from_mxfp4(*tensors)
        return [joined[:, ::2], joined[:, 1::2]]

    def halves(tensors: list[Tensor]) -> list[Tensor]:
        return [tensors[0][..., ::2], tensors[0][..., 1::2]]

    def alternating(tensors: list[Tensor]) -> list[Tensor]:
        return [torch.stack(tensors, -1).flatten(-2)]

    def transposed(tensors: list[Tensor]) -> list[Tensor]:
        return [tensor.transpose(1, 2) for tensor in tensors]

    weights, biases = ((f"{OURS}.gate.{kind}", f"{OURS}.up.{kind}") for kind in ("weight", "bias"))
    packed = [
        tuple(f"{MLP}.experts.{part}_proj_{kind}" for kind in ("blocks", "scales"))
        for part in ("gate_up", "down")
    ]
    return [
        TensorRule(weights, packed[0], unpacked_halves),
        TensorRule((f"{OURS}.down.weight",), packed[1], unpacked),
        *renamed(PLAIN),
        TensorRule(weights, (f"{MLP}.experts.gate_up_proj",), lambda t: transposed(halves(t)),
             lambda t: alternating(transposed(t))),
        TensorRule(biases, (f"{MLP}.experts.gate_up_proj_bias",), halves, alternating),
        TensorRule((f"{OURS}.down.weight",), (f"{MLP}.experts.down_proj",), transposed, transposed),
    ]  # fmt: skip


def read(fields: Fields) -> dict[str, Any]:
    fields.only("hidden_act", "silu")
    fields.only("swiglu_alpha", 1.702)
    fields.only("swiglu_limit", 7.0)
    fields.drop("experts_per_token", "initial_context_length")
    packing = fields.take("quantization_config", None) or {"quant_method": "mxfp4"}
    if not isinstance(packing, dict) or packing.get("quant_method") != "mxfp4":
        raise SettingError(f"quantization_config: {packing!r} is not read here, only mxfp4")
    if not fields.left.get("rope_parameters") and not fields.left.get("rope_scaling"):
        fields.left["rope_scaling"] = SCALING
    values, bias = read_decoder(fields), fields.take("attention_bias", True)
    moe = {
        "kind": "moe",
        "hidden": values["mlp"]["hidden"],
        "experts": fields.take("num_local_experts"),
        "top_k": fields.take("num_experts_per_tok"),
        "activation": "clamped",
        "bias": True,
    }
    moe = read_balance_loss(fields, moe, values["layers"])
    attention = read_attention(fields, values["context"])
    attention |= {"bias": bias, "out_bias": bias, "sink_logits": True}
    windows = read_windows(fields, values["layers"], default=(SLIDING, FULL))
    return {**values, "mlp": moe, "attention": in_layers(attention, windows)}


def write(config: TransformerConfig) -> dict[str, Any]:
    moe = the_only(config.mlp, MoE, "mlp", "gpt_oss")
    return {
        **write_decoder(config, SwiGLU(hidden=moe.hidden), "gpt_oss"),
        **write_attention(config, "gpt_oss"),
        **write_windows(config),
        "attention_bias": config.attention[0].out_bias,
        "num_local_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
        **write_balance_loss(moe, config.layers),
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
    }


GPT_OSS = Family(
    "gpt_oss",
    read,
    write,
    names,
    "GptOssForCausalLM",
    "GptOssForSequenceClassification",
    defaults={
        "head_dim": 64,
        "num_key_value_heads": 8,
        "sliding_window": 128,
        "rope_theta": 150_000.0,
    },
)
