"""Tiny random models of every family in transformers, and the settings of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

WIDE = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64}
COMMON = {
    **WIDE,
    "vocab_size": 320,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS = {"head_dim": 16}
WINDOW = {"sliding_window": 16}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
DEEPSEEK = {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 32,
    "q_lora_rank": 64,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 24,
    "rope_parameters": {**YARN, "rope_theta": 1e4, "mscale": 0.7, "mscale_all_dim": 0.7},
}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": 320}

# name in the table -> model_type, settings
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama 2": ("llama", {**HEADS}),
    "Llama 3": ("llama", {**HEADS, "rope_parameters": {**LLAMA3, "rope_theta": 5e5}}),
    "SmolLM2": ("llama", {**HEADS, "tie_word_embeddings": True}),
    "SmolLM3": ("smollm3", {}),
    "Mistral": ("mistral", {**HEADS, **WINDOW}),
    "Qwen2": ("qwen2", {}),
    "Qwen3": ("qwen3", {"head_dim": 24, "tie_word_embeddings": True}),
    "Qwen3-MoE": (
        "qwen3_moe",
        {
            **HEADS,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
        },
    ),
    "Mixtral": ("mixtral", {**HEADS, **MOE}),
    "Gemma 2": ("gemma2", {"head_dim": 24, "query_pre_attn_scalar": 24, **WINDOW}),
    "Gemma 3": (
        "gemma3_text",
        {"head_dim": 24, "query_pre_attn_scalar": 24, **WINDOW, "num_hidden_layers": 7},
    ),
    "GPT-2": ("gpt2", GPT2),
    "Pythia": ("gpt_neox", {}),
    "OLMo 2": ("olmo2", {}),
    "OLMo 3": ("olmo3", {**WINDOW}),
    "Phi-3": ("phi3", {**WINDOW}),
    "DeepSeek-V3": ("deepseek_v3", DEEPSEEK),
    "GPT-OSS": ("gpt_oss", {**HEADS, **MOE, **WINDOW}),
}


def peer_of(name: str) -> nn.Module:
    """Their model, with weights large enough that every part of it matters."""
    kind, settings = FAMILIES[name]
    common = {} if kind == "gpt2" else dict(COMMON)
    if kind == "gpt_neox":
        del common["num_key_value_heads"]
    config = transformers.AutoConfig.for_model(kind, **{**common, **settings})
    return strong(
        transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    )


def strong(peer: nn.Module) -> nn.Module:
    """The model with other weights, initialised again."""
    drawn = torch.Generator().manual_seed(0)
    centered = "Gemma" in type(peer).__name__
    for part, tensor in [*peer.named_parameters(), *peer.named_buffers()]:
        if tensor.dim() > 1:
            tensor.data.normal_(0.0, 0.15, generator=drawn)
        elif part.endswith(("bias", "sinks")):
            tensor.data.normal_(0.0, 0.1, generator=drawn)
        elif "norm" in part or "ln_" in part:
            tensor.data.normal_(0.0 if centered else 1.0, 0.1, generator=drawn)
    return peer.eval()


@torch.no_grad()
def logits_of(peer: nn.Module, tokens: Tensor) -> Tensor:
    """(B, T, V)."""
    return peer(tokens).logits


def saved(peer: nn.Module, tokenizer: Any, folder: Path, shards: str = "5GB") -> Path:
    """A folder as they save it."""
    peer.save_pretrained(folder, max_shard_size=shards)
    tokenizer.save(folder)
    return folder
