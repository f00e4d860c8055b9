"""GPT-2: learned positions, LayerNorm, biases; matrices are stored transposed (Radford 2019)."""

from __future__ import annotations

from typing import Any

from culm.convert.family import Family, Fields
from culm.convert.hf.families.decoder import THEIRS, activation_of, the_only
from culm.convert.rules import TensorRule, join, renamed, split
from culm.model.attention.gqa import GQA
from culm.model.mlp.plain import Plain
from culm.model.transformer import TransformerConfig

NAMES = {
    "embed": "transformer.wte",
    "positions": "transformer.wpe",
    "norm": "transformer.ln_f",
    "head": "lm_head",
    "blocks.#.attention_norm": "transformer.h.#.ln_1",
    "blocks.#.mlp_norm": "transformer.h.#.ln_2",
}
TRANSPOSED = {
    "blocks.#.attention.out": "transformer.h.#.attn.c_proj",
    "blocks.#.mlp.up": "transformer.h.#.mlp.c_fc",
    "blocks.#.mlp.down": "transformer.h.#.mlp.c_proj",
}


def names(config: TransformerConfig) -> list[TensorRule]:
    width, whole = config.width, tuple(f"blocks.#.attention.{part}" for part in "qkv")
    fused = ("transformer.h.#.attn.c_attn",)
    return [
        *renamed(NAMES),
        *(TensorRule((ours,), (theirs,), transposed=True) for ours, theirs in TRANSPOSED.items()),
        TensorRule(whole, fused, split(width, width, width), join, transposed=True),
    ]


def read(fields: Fields) -> dict[str, Any]:
    fields.only("scale_attn_weights", True)
    fields.only("scale_attn_by_inverse_layer_idx", False)
    fields.drop("n_ctx", "reorder_and_upcast_attn", "attn_pdrop", "embd_pdrop")
    fields.drop(*[name for name in fields.left if name.startswith("summary_")])
    heads = fields.take("n_head")
    return {
        "vocabulary": fields.take("vocab_size"),
        "width": fields.take("n_embd"),
        "layers": fields.take("n_layer"),
        "context": fields.take("n_positions"),
        "attention": {"kind": "gqa", "heads": heads, "rope": None, "bias": True, "out_bias": True},
        "mlp": {
            "kind": "plain",
            "hidden": fields.take("n_inner", None),
            "activation": activation_of(fields, "activation_function", "gelu_new"),
            "bias": True,
        },
        "norm": {"kind": "layer", "eps": fields.take("layer_norm_epsilon", 1e-5)},
        "residual": {"dropout": fields.take("resid_pdrop", 0.0)},
        "learned_positions": True,
        "tied": fields.take("tie_word_embeddings", True),
    }


def write(config: TransformerConfig) -> dict[str, Any]:
    mlp = the_only(config.mlp, Plain, "mlp", "gpt2")
    attention = the_only(config.attention, GQA, "attention", "gpt2")
    return {
        "vocab_size": config.vocabulary,
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_positions": config.context,
        "n_head": attention.heads,
        "n_inner": mlp.hidden,
        "activation_function": THEIRS.get(mlp.activation, mlp.activation),
        "layer_norm_epsilon": config.norm.eps,
        "resid_pdrop": config.residual.dropout,
        "tie_word_embeddings": config.tied,
    }


GPT2 = Family(
    "gpt2",
    read,
    write,
    names,
    "GPT2LMHeadModel",
    "GPT2ForSequenceClassification",
    root="transformer.",
    defaults={"resid_pdrop": 0.1},
)
