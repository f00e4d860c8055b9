"""Hugging Face folders, both ways: Llama, Mistral without a window, Qwen2 and Qwen3."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from culm.config import SettingError, parse
from culm.convert.card import write_card
from culm.convert.family import shape_of
from culm.convert.hf_rope import read_rope, rope_fields
from culm.convert.weights import assemble, plain_weights
from culm.dtype import name_of
from culm.files import atomic, read_json, vacant, write_json
from culm.model.names import rename
from culm.model.transformer import Transformer, TransformerConfig
from culm.tensors import read_safetensors, write_safetensors
from culm.tokenizer.tokenizer import Tokenizer, check_vocabulary

CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
SETTINGS = "config.json"
FAMILIES = (*CLASSES, "mistral")  # Mistral without its window is a Llama

# Settings that do not change what a forward computes, or that only repeat others.
_NEUTRAL = """
architectures model_type transformers_version torch_dtype dtype use_cache initializer_range
attention_dropout bos_token_id eos_token_id pad_token_id pretraining_tp max_window_layers
output_attentions output_hidden_states return_dict id2label label2id problem_type
chunk_size_feed_forward is_encoder_decoder name_or_path unsloth_version unsloth_fixed
keys_to_ignore_at_inference task_specific_params
"""
NEUTRAL = frozenset(_NEUTRAL.split())


def is_model(path: Path) -> bool:
    """Whether this is a Hugging Face folder."""
    return (path / SETTINGS).is_file()


def export(
    model: Transformer,
    tokenizer: Tokenizer,
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    told: Callable[[int], None] | None = None,
) -> None:
    """Write a folder that transformers, vLLM and the like load as it is.

    Quantised layers are multiplied out. told: called with the count of numbers as they are read.

    Raises:
        SettingError: no family has the model's shape, adapters are not merged, or the folder
            holds something else.
        OSError: the disk is full or may not be written to.
    """
    folder = Path(folder)
    config = _config(model.config, tokenizer, dtype)
    vacant(folder, SETTINGS)
    weights = {}
    for name, tensor in plain_weights(model):
        weights[str(rename(name, "culm", "hf"))] = tensor.to(dtype).cpu().contiguous()
        if told:
            told(tensor.numel())
    with atomic(folder) as fresh:
        fresh.mkdir()
        write_safetensors(fresh / "model.safetensors", weights)
        tokenizer.save(fresh)
        write_json(fresh / SETTINGS, config)
        ends = {"eos_token_id": sorted(tokenizer.stop_ids), "pad_token_id": tokenizer.end_of_text}
        write_json(fresh / "generation_config.json", ends)
        write_card(model, fresh, folder.name, library="transformers")


def _config(config: TransformerConfig, tokenizer: Tokenizer, dtype: torch.dtype) -> dict[str, Any]:
    shape = shape_of(config, "Hugging Face")
    return {
        "architectures": [CLASSES[shape.family]],
        "model_type": shape.family,
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "intermediate_size": shape.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.eps,
        **rope_fields(shape.rope),
        "tie_word_embeddings": config.tied,
        "bos_token_id": None,
        "eos_token_id": tokenizer.end_of_text,
        "dtype": name_of(dtype),
        **({} if shape.family == "qwen2" else {"attention_bias": False}),
        **({"mlp_bias": False} if shape.family == "llama" else {"use_sliding_window": False}),
    }


def load(
    folder: str | Path, device: torch.device | str = "cpu", grows: bool = False
) -> tuple[Transformer, Tokenizer]:
    """A model and its tokenizer from a Hugging Face folder; weights keep their precision.

    grows: the tokenizer may have more tokens than the model has rows, which the caller will add.

    Raises:
        SettingError: the family or one of its settings is not known here, or a file is broken.
    """
    config, weights, tokenizer = parts(folder, grows)
    return assemble(config, weights, str(folder), device), tokenizer


def parts(
    folder: str | Path, grows: bool = False
) -> tuple[TransformerConfig, Iterator[tuple[str, Tensor]], Tokenizer]:
    """What `load` puts together; the weights under our names, one at a time."""
    folder = Path(folder)
    if not folder.is_dir():
        raise SettingError(f"{folder}: there is no such folder")
    config = read_config(folder / SETTINGS)
    tokenizer = Tokenizer.load(folder)
    if not grows:
        check_vocabulary(tokenizer, config.vocabulary, folder)
    return config, _weights(folder, config.tied), tokenizer


def read_config(path: Path) -> TransformerConfig:
    """Our settings for a `config.json`; a setting that is not understood is refused by name."""
    given = read_json(path)
    family = given.get("model_type")
    if family not in FAMILIES:
        raise SettingError(f"{path}: model_type {family!r} is not one of {', '.join(FAMILIES)}")
    try:
        values = _values(given, family)
    except KeyError as error:
        raise SettingError(f"{path}: the setting {error.args[0]} is missing") from None
    except SettingError as error:
        raise SettingError(f"{path}: {error}") from None
    return parse(TransformerConfig, values, str(path))


def _values(given: Mapping[str, Any], family: str) -> dict[str, Any]:
    left = {k: v for k, v in given.items() if k not in NEUTRAL and not k.startswith("_")}
    rope = read_rope(left)
    windowed = left.pop("use_sliding_window", family == "mistral")
    if not windowed:  # Qwen writes a window that is not in use
        left.pop("sliding_window", None)
    kinds = left.pop("layer_types", None) or []
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise SettingError(f"layer_types: {kinds!r} is not full attention in every layer")
    if (act := left.pop("hidden_act", "silu")) != "silu":
        raise SettingError(f"hidden_act: {act!r} is not read here, only 'silu'")
    heads = left.pop("num_attention_heads")
    values = {
        "vocabulary": left.pop("vocab_size"),
        "width": left.pop("hidden_size"),
        "layers": left.pop("num_hidden_layers"),
        "context": left.pop("max_position_embeddings"),
        "mlp": {"kind": "swiglu", "hidden": left.pop("intermediate_size")},
        "eps": left.pop("rms_norm_eps"),
        "tied": left.pop("tie_word_embeddings", False),
        "attention": {
            "kind": "gqa",
            "heads": heads,
            "kv_heads": left.pop("num_key_value_heads", None) or heads,
            "head_dim": left.pop("head_dim", None),
            "qk_norm": family == "qwen3",
            "bias": family == "qwen2",
            "rope": rope,
        },
    }
    for name, value in left.items():
        if value:  # None, false, 0 and empty switch a thing off
            raise SettingError(f"{name}: {value!r} is not known here and may change the model")
    return values


def _weights(folder: Path, tied: bool) -> Iterator[tuple[str, Tensor]]:
    for shard in _shards(folder):
        for name, tensor in read_safetensors(shard):
            # Old checkpoints hold what can be computed, and some a second copy of a tied head.
            if name.endswith("rotary_emb.inv_freq") or (tied and name == "lm_head.weight"):
                continue
            yield rename(name, "hf", "culm") or name, tensor


def _shards(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [folder / "model.safetensors"]
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(n, str) for n in places.values()):
        raise SettingError(f"{index}: broken: weight_map names no files")
    # Names only: an index must not lead out of its folder.
    return [folder / Path(name).name for name in sorted(set(places.values()))]
