"""Hugging Face folders, both ways, of every family in `culm.convert.hf.families`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from culm.config import SettingError
from culm.convert import rules
from culm.convert.card import write_card
from culm.convert.family import Family, family_of
from culm.convert.hf.families import FAMILIES
from culm.convert.hf.fp8 import Blocks, dequantized, read_blocks
from culm.convert.multipliers import plain_config
from culm.convert.rules import ModuleNames
from culm.convert.weights import assemble, note_dropped_heads, plain_weights
from culm.dtype import name_of
from culm.files import atomic, read_json, refuse_nonempty, write_json
from culm.model.mlp.moe import MoE
from culm.model.rule_updated import rule_updated
from culm.model.transformer import Transformer, TransformerConfig
from culm.safetensors import read_pickled, read_safetensors, write_safetensors
from culm.tokenizer.tokenizer import Tokenizer, check_vocabulary

SETTINGS, WEIGHTS = "config.json", "model.safetensors"
COMPUTED = ("rotary_emb.inv_freq", "attn.bias", "attention.bias", ".masked_bias")

# Settings that do not change what a forward computes, or that only repeat others.
_NEUTRAL = """
architectures model_type transformers_version torch_dtype dtype use_cache initializer_range
attention_dropout bos_token_id eos_token_id pad_token_id pretraining_tp
output_attentions output_hidden_states return_dict id2label label2id problem_type
chunk_size_feed_forward is_encoder_decoder is_decoder add_cross_attention name_or_path
unsloth_version unsloth_fixed keys_to_ignore_at_inference task_specific_params
router_jitter_noise auto_map cache_implementation is_llama_config transformers.js_config
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
    family: str = "",
    shard_bytes: int = 5 << 30,
) -> None:
    """Write a folder that transformers, vLLM and the like load as it is.

    Quantised layers are multiplied out. told: called with the count of numbers as they are read.
    family: its model_type, where several have the model's shape. shard_bytes: of a file, of which
    there are several if need be; one of them is in memory at a time.

    Raises:
        SettingError: no family has the model's shape, adapters are not merged, or the folder
            holds something else.
        OSError: the disk is full or may not be written to.
    """
    folder = Path(folder)
    config = plain_config(model.config)
    chosen = family_of(config, named(family), "Hugging Face")
    refuse_nonempty(folder, SETTINGS)
    note_dropped_heads(model)
    exact = {
        buffer.data_ptr() for buffer in rule_updated(model).values()
    }  # they move by thousandths

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in rules.write(plain_weights(model), chosen.rules(config.resolved())):
            kept = tensor if tensor.data_ptr() in exact else tensor.to(dtype)
            yield name, kept.cpu().contiguous()
            if told:
                told(tensor.numel())

    with atomic(folder) as fresh:
        fresh.mkdir()
        _write_shards(fresh, tensors(), shard_bytes)
        tokenizer.save(fresh)
        write_json(fresh / SETTINGS, _settings(config, chosen, tokenizer, dtype))
        ends = {"eos_token_id": sorted(tokenizer.stop_ids), "pad_token_id": tokenizer.end_of_text}
        write_json(fresh / "generation_config.json", ends)
        write_card(model, fresh, folder.name, library="transformers")


def _write_shards(folder: Path, tensors: Iterator[tuple[str, Tensor]], most: int) -> None:
    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}

    def write() -> None:
        write_safetensors(folder / f"{len(shards)}.part", held)
        shards.append(list(held))
        held.clear()

    total = size = 0
    for name, tensor in tensors:
        if held and size + tensor.nbytes > most:
            write()
            size = 0
        held[name] = tensor
        size, total = size + tensor.nbytes, total + tensor.nbytes
    write()
    places: dict[str, str] = {}
    for index, names in enumerate(shards):
        file = f"model-{index + 1:05}-of-{len(shards):05}.safetensors"
        file = file if len(shards) > 1 else WEIGHTS
        (folder / f"{index}.part").rename(folder / file)
        places |= dict.fromkeys(names, file)
    if len(shards) > 1:
        listed = {"metadata": {"total_size": total}, "weight_map": places}
        write_json(folder / f"{WEIGHTS}.index.json", listed)


def named(family: str) -> Sequence[Family]:
    """All families, or the one of this model_type.

    Raises:
        SettingError: there is no such family.
    """
    known = {each.name: each for each in FAMILIES}
    if family and family not in known:
        raise SettingError(f"family: {family!r} is not one of {', '.join(known)}")
    return (known[family],) if family else FAMILIES


def _settings(
    config: TransformerConfig, family: Family, tokenizer: Tokenizer, dtype: torch.dtype
) -> dict[str, Any]:
    return {
        "architectures": [family.architecture],
        "model_type": family.name,
        **family.write(config.resolved()),
        "bos_token_id": None,
        "eos_token_id": tokenizer.end_of_text,
        "pad_token_id": tokenizer.end_of_text,
        "dtype": name_of(dtype),
    }


def module_names(config: TransformerConfig, family: str = "") -> ModuleNames:
    """What the modules of a model are called in its family, or in the one of this model_type.

    Raises:
        SettingError: no family has its shape.
    """
    plain = plain_config(config)
    chosen = family_of(plain, named(family), "Hugging Face")
    return ModuleNames(chosen.rules(plain.resolved()))


def family_at(folder: str | Path) -> str:
    """The model_type of a Hugging Face folder; empty where it is none."""
    path = Path(folder).expanduser() / SETTINGS
    return str(read_json(path).get("model_type", "")) if path.is_file() else ""


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
    family, config, blocks = read_config(folder / SETTINGS)
    tokenizer = Tokenizer.load(folder)
    if not grows:
        check_vocabulary(tokenizer, config.vocabulary, folder)
    return config, _weights(folder, family, config, blocks), tokenizer


def read_config(path: Path) -> tuple[Family, TransformerConfig, Blocks | None]:
    """The family of a `config.json`, our settings for it, and in which blocks it is in fp8.

    Raises:
        SettingError: a setting is missing or not understood.
    """
    given = read_json(path)
    known = {family.name: family for family in FAMILIES}
    name = given.get("model_type")
    if not isinstance(name, str) or name not in known:
        raise SettingError(f"{path}: model_type {name!r} is not one of {', '.join(known)}")
    left = {k: v for k, v in given.items() if k not in NEUTRAL and not k.startswith("_")}
    packing, blocks = left.get("quantization_config") or {}, None
    method = packing.get("quant_method") if isinstance(packing, dict) else packing
    if packing and method not in ("fp8", "mxfp4"):
        raise SettingError(
            f"{path}: quantization_config: {method!r} is not read here, only fp8 in blocks and the "
            "mxfp4 of GPT-OSS; take the folder that is not quantised"
        )
    if method == "fp8":
        try:
            blocks = read_blocks(left.pop("quantization_config"))
        except SettingError as error:
            raise SettingError(f"{path}: quantization_config.{error}") from None
    return known[name], known[name].config(left, str(path)), blocks


def _weights(
    folder: Path, family: Family, config: TransformerConfig, blocks: Blocks | None
) -> Iterator[tuple[str, Tensor]]:
    resolved = config.resolved()
    names = family.rules(resolved)
    tensors = (each for shard in _shards(folder) for each in _read(shard))
    whole = dequantized(tensors, blocks, str(folder)) if blocks else tensors
    stored = ((rules.rooted(name, family.root, names), tensor) for name, tensor in whole)
    ends: dict[str, Tensor] = {}
    for name, tensor in rules.read(stored, names, _experts(resolved)):
        if config.tied and name in ("embed.weight", "head.weight"):
            ends[name] = tensor
            if len(ends) == 2 and not torch.equal(*ends.values()):
                raise SettingError(
                    f"{folder}: tie_word_embeddings is true, but the head is not the embedding; "
                    "set it to false"
                )
        # Old checkpoints hold what can be computed, and some a second copy of a tied head.
        again = name.endswith(COMPUTED) or (config.tied and name == "head.weight")
        if not again and not _further(name, family, config):
            yield name, tensor


def _further(name: str, family: Family, config: TransformerConfig) -> bool:
    """Whether a tensor is of a layer behind the last, which predicts further tokens."""
    layer = name.removeprefix("blocks.").removeprefix("model.layers.").partition(".")[0]
    return family.further and layer.isdigit() and int(layer) >= config.layers


def _experts(config: TransformerConfig) -> int:
    return max((mlp.experts for mlp in config.mlp if isinstance(mlp, MoE)), default=0)


def _read(shard: Path) -> Iterator[tuple[str, Tensor]]:
    return read_pickled(shard) if shard.suffix == ".bin" else read_safetensors(shard)


def _shards(folder: Path) -> list[Path]:
    for name in (WEIGHTS, "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _indexed(index)
        if (folder / name).is_file():
            return [folder / name]
    return [folder / WEIGHTS]  # which is not there, as reading it will say


def _indexed(index: Path) -> list[Path]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(n, str) for n in places.values()):
        raise SettingError(f"{index}: broken: weight_map names no files")
    # Names only: an index must not lead out of its folder.
    return [index.parent / Path(name).name for name in sorted(set(places.values()))]
