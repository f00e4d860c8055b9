"""Settings of `config.json` and names of tensors that the families of the Llama line share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from culm.config import SettingError
from culm.convert.family import Fields
from culm.convert.hf.rope import read_rope, rope_fields, rope_mapping
from culm.convert.rules import TensorRule, renamed
from culm.model.attention.gqa import GQA
from culm.model.mlp.gated import Gated, GeGLU, SwiGLU
from culm.model.mlp.moe import MoE
from culm.model.norm import RMSNormConfig
from culm.model.rope import Rope
from culm.model.transformer import TransformerConfig

SLIDING, FULL = "sliding_attention", "full_attention"

NAMES = {
    "embed": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "blocks.#.attention_norm": "model.layers.#.input_layernorm",
    "blocks.#.attention.q": "model.layers.#.self_attn.q_proj",
    "blocks.#.attention.k": "model.layers.#.self_attn.k_proj",
    "blocks.#.attention.v": "model.layers.#.self_attn.v_proj",
    "blocks.#.attention.out": "model.layers.#.self_attn.o_proj",
    "blocks.#.attention.q_norm": "model.layers.#.self_attn.q_norm",
    "blocks.#.attention.k_norm": "model.layers.#.self_attn.k_norm",
    "blocks.#.mlp_norm": "model.layers.#.post_attention_layernorm",
    "blocks.#.mlp.gate": "model.layers.#.mlp.gate_proj",
    "blocks.#.mlp.up": "model.layers.#.mlp.up_proj",
    "blocks.#.mlp.down": "model.layers.#.mlp.down_proj",
}
SANDWICH = {
    "blocks.#.attention_out_norm": "model.layers.#.post_attention_layernorm",
    "blocks.#.mlp_norm": "model.layers.#.pre_feedforward_layernorm",
    "blocks.#.mlp_out_norm": "model.layers.#.post_feedforward_layernorm",
}


TANH = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh")
OURS = dict.fromkeys(TANH, "gelu_tanh") | {n: n for n in ("gelu", "relu", "relu2", "silu")}
THEIRS = {"gelu_tanh": "gelu_new"}


def names(config: TransformerConfig) -> list[TensorRule]:
    """Names of the Llama line."""
    return renamed(NAMES)


def read_decoder(
    fields: Fields, *, tied: bool = False, activation: str = "hidden_act"
) -> dict[str, Any]:
    """The common settings, without attention."""
    return {
        "vocabulary": fields.take("vocab_size"),
        "width": fields.take("hidden_size"),
        "layers": fields.take("num_hidden_layers"),
        "context": fields.take("max_position_embeddings"),
        "mlp": {**_gate(fields, activation), "hidden": fields.take("intermediate_size")},
        "norm": {"kind": "rms", "eps": fields.take("rms_norm_eps")},
        "tied": fields.take("tie_word_embeddings", tied),
    }


def activation_of(fields: Fields, setting: str, default: str) -> str:
    """The activation of a feed-forward without a gate."""
    name = fields.take(setting, default)
    if not isinstance(name, str) or name not in OURS:
        raise SettingError(f"{setting}: {name!r} is not read here, only {', '.join(OURS)}")
    return OURS[name]


GATES: dict[str, Gated] = {
    "silu": SwiGLU(),
    "gelu_pytorch_tanh": GeGLU(),
    "gelu": GeGLU(exact=True),
}


def _gate(fields: Fields, activation: str) -> dict[str, Any]:
    name = fields.take(activation, "silu")
    if not isinstance(name, str) or name not in GATES:
        raise SettingError(f"{activation}: {name!r} is not read here, only {', '.join(GATES)}")
    return GATES[name].model_dump()


def read_attention(fields: Fields, context: int, partial: bool = False) -> dict[str, Any]:
    """Heads, and one rotary embedding for all layers; partial: as in `read_rope`."""
    heads = fields.take("num_attention_heads")
    return {
        "kind": "gqa",
        "heads": heads,
        "kv_heads": fields.take("num_key_value_heads", None) or heads,
        "head_dim": fields.take("head_dim", None),
        "rope": read_rope(fields, context, partial),
    }


def read_windows(
    fields: Fields, layers: int, *, used: bool = True, default: Sequence[str] = (SLIDING,)
) -> list[int | None]:
    """The window of every layer. default: kinds of layers, repeated, if none are given."""
    window = fields.take("sliding_window", None)
    window = window if used else None
    kinds = fields.take("layer_types", None) or [default[i % len(default)] for i in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or not {*kinds} <= {SLIDING, FULL}:
        raise SettingError(f"layer_types: {kinds!r} is not a kind of attention for every layer")
    return [window if kind == SLIDING else None for kind in kinds]


def in_layers(
    attention: dict[str, Any],
    windows: Sequence[int | None],
    ropes: Sequence[dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """One attention per layer, which differ in their windows only.

    ropes: of layers without a window and of those with one, if they differ.
    """
    full, sliding = ropes or (attention["rope"], attention["rope"])
    return [
        {**attention, "window": window, "rope": full if window is None else sliding}
        for window in windows
    ]


def the_only(parts: Sequence[Any], kind: type, setting: str, family: str) -> Any:
    """The first part of a config, if all are of this kind.

    Raises:
        SettingError: one is of another kind.
    """
    for part in parts:
        if type(part) is not kind:
            raise SettingError(f"model.{setting}: {family} models have no {part.kind!r}")
    return parts[0]


def write_decoder(
    config: TransformerConfig, mlp: Gated, family: str, *, activation: str = "hidden_act"
) -> dict[str, Any]:
    """The common settings, without attention. mlp: of the layers without experts."""
    if not isinstance(config.norm, RMSNormConfig):
        raise SettingError(f"model.norm: {family} models have no {config.norm.kind!r}")
    return {
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "intermediate_size": mlp.hidden,
        "num_hidden_layers": config.layers,
        activation: next(n for n, gate in GATES.items() if gate.activation == mlp.activation),
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm.eps,
        "tie_word_embeddings": config.tied,
    }


def write_attention(config: TransformerConfig, family: str) -> dict[str, Any]:
    """Heads, and one rotary embedding for all layers."""
    attention = the_only(config.attention, GQA, "attention", family)
    return {
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        **rope_fields(attention.rope or Rope()),
    }


def write_line(config: TransformerConfig, family: str) -> dict[str, Any]:
    """Both, for a model without experts."""
    mlp = gated(config, family)
    return {**write_decoder(config, mlp, family), **write_attention(config, family)}


def gated(config: TransformerConfig, family: str) -> Gated:
    """The feed-forward of a model without experts."""
    kind = GeGLU if isinstance(config.mlp[0], GeGLU) else SwiGLU
    mlp: Gated = the_only(config.mlp, kind, "mlp", family)
    return mlp


def write_windows(config: TransformerConfig) -> dict[str, Any]:
    """`layer_types` and the window, for grouped-query attention.

    If no layer has a window, it is as long as the context: transformers needs a number.
    """
    windows = [part.window for part in config.attentions if isinstance(part, GQA)]
    used = next((window for window in windows if window), None)
    kinds = [SLIDING if window else FULL for window in windows]
    return {"sliding_window": used or config.context, "layer_types": kinds}


def with_ropes(fields: dict[str, Any], config: TransformerConfig) -> dict[str, Any]:
    """The settings with one rotary embedding per kind of layer instead of one for all."""
    parts = [part for part in config.attentions if isinstance(part, GQA)]
    ropes = {SLIDING if part.window else FULL: part.rope or Rope() for part in reversed(parts)}
    theirs = {kind: rope_mapping(rope) for kind, rope in ropes.items()}
    either = next(iter(theirs.values()))
    left = {n: v for n, v in fields.items() if n not in ("rope_theta", "rope_scaling")}
    return {**left, "rope_parameters": {FULL: either, SLIDING: either, **theirs}}


def dense_and_moe(config: TransformerConfig, family: str) -> tuple[MoE, SwiGLU, list[bool]]:
    """The experts of a config, the feed-forward of its other layers, and which have experts."""
    sparse = [isinstance(mlp, MoE) for mlp in config.mlps]
    moes = [mlp for mlp in config.mlps if isinstance(mlp, MoE)]
    rest = [mlp for mlp in config.mlps if not isinstance(mlp, MoE)]
    if not moes:
        raise SettingError(f"model.mlp: {family} models have experts, but this one has none")
    dense = the_only(rest, SwiGLU, "mlp", family) if rest else SwiGLU(hidden=moes[0].hidden)
    return moes[0], dense, sparse


def read_balance_loss(fields: Fields, moe: dict[str, Any], layers: int) -> dict[str, Any]:
    """Settings of experts with the weight of their balance loss; layers: those with experts.

    Theirs counts all top_k choices of a token, so it is top_k times ours, and is a mean over the
    layers, where ours is a sum. It is on if `output_router_logits` is.
    """
    weight = fields.take("router_aux_loss_coef", 0.0)
    weight = weight if fields.take("output_router_logits", False) else 0.0
    return {**moe, "balance_loss": weight * moe["top_k"] / max(1, layers)}


def write_balance_loss(moe: MoE, layers: int) -> dict[str, Any]:
    """The inverse: their settings for ours."""
    weight = moe.balance_loss * layers / moe.top_k
    return {"router_aux_loss_coef": weight, "output_router_logits": weight > 0}
