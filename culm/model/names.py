"""What each part of the model is called elsewhere.

One table for the checkpoints of the Llama line (Llama, Mistral, Qwen2, Qwen3): Hugging Face names
and GGUF names. `#` stands for the number of a layer.
"""

from __future__ import annotations

import re
from typing import Literal

Scheme = Literal["culm", "hf", "gguf"]

_TABLE = {
    "embed": ("model.embed_tokens", "token_embd"),
    "norm": ("model.norm", "output_norm"),
    "head": ("lm_head", "output"),
    "blocks.#.attention_norm": ("model.layers.#.input_layernorm", "blk.#.attn_norm"),
    "blocks.#.attention.q": ("model.layers.#.self_attn.q_proj", "blk.#.attn_q"),
    "blocks.#.attention.k": ("model.layers.#.self_attn.k_proj", "blk.#.attn_k"),
    "blocks.#.attention.v": ("model.layers.#.self_attn.v_proj", "blk.#.attn_v"),
    "blocks.#.attention.out": ("model.layers.#.self_attn.o_proj", "blk.#.attn_output"),
    "blocks.#.attention.q_norm": ("model.layers.#.self_attn.q_norm", "blk.#.attn_q_norm"),
    "blocks.#.attention.k_norm": ("model.layers.#.self_attn.k_norm", "blk.#.attn_k_norm"),
    "blocks.#.mlp_norm": ("model.layers.#.post_attention_layernorm", "blk.#.ffn_norm"),
    "blocks.#.mlp.gate": ("model.layers.#.mlp.gate_proj", "blk.#.ffn_gate"),
    "blocks.#.mlp.up": ("model.layers.#.mlp.up_proj", "blk.#.ffn_up"),
    "blocks.#.mlp.down": ("model.layers.#.mlp.down_proj", "blk.#.ffn_down"),
}
_ROWS = [{"culm": ours, "hf": hf, "gguf": gguf} for ours, (hf, gguf) in _TABLE.items()]
_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")


def rename(name: str, source: Scheme, target: Scheme) -> str | None:
    """A parameter's name in another scheme; None for a name that is in no row of the table.

    >>> rename("blocks.3.attention.q.weight", "culm", "gguf")
    'blk.3.attn_q.weight'
    """
    module, _, kind = name.rpartition(".")
    layer = _LAYER.search(name)
    pattern = _LAYER.sub("#", f"{module}.").removesuffix(".")
    for row in _ROWS:
        if row[source] == pattern:
            return f"{row[target].replace('#', layer[0] if layer else '#')}.{kind}"
    return None
