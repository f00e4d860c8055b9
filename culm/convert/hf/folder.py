"""Read Hugging Face folders of every family in `culm.convert.hf.families`."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from culm.config import SettingError
from culm.convert import rules
from culm.convert.card import read_trained_on
from culm.convert.family import Family
from culm.convert.hf.classifier import scalar_config
from culm.convert.hf.families import FAMILIES
from culm.convert.hf.fp8 import Blocks, dequantized, read_blocks
from culm.convert.weights import assemble
from culm.files import read_json
from culm.log import say
from culm.model.mlp.moe import MoE
from culm.model.transformer import Transformer, TransformerConfig
from culm.safetensors import read_names, read_pickled, read_safetensors
from culm.tokenizer.generation import NAMES as GENERATION_SETTINGS
from culm.tokenizer.rows import within_rows
from culm.tokenizer.tokenizer import Tokenizer

SETTINGS, WEIGHTS = "config.json", "model.safetensors"
COMPUTED = ("rotary_emb.inv_freq", "attn.bias", "attention.bias", ".masked_bias")

# Settings that do not change the forward, or only repeat others.
_NEUTRAL = """
architectures model_type transformers_version torch_dtype dtype initializer_range
attention_dropout pretraining_tp return_dict id2label label2id problem_type num_labels
chunk_size_feed_forward is_encoder_decoder is_decoder add_cross_attention tie_encoder_decoder
cross_attention_hidden_size keys_to_ignore_at_inference task_specific_params finetuning_task
prefix torchscript tf_legacy_loss use_bfloat16 router_jitter_noise auto_map is_llama_config
transformers.js_config name_or_path unsloth_version unsloth_fixed gradient_checkpointing
"""
_NAMES_AND_LENGTHS = """
tokenizer_class processor_class model_name license trust_remote_code sep_token_id add_bos_token
add_eos_token max_sequence_length max_seq_length max_seq_len seq_length model_max_length
"""
_KERNELS = """
use_flash_attn use_flash_attention use_flash_attention_2 flash_attention flash_attn
attn_implementation experts_implementation use_sdpa use_kernels fused_rms_norm fused_mlp
"""
NEUTRAL = GENERATION_SETTINGS.union(*map(str.split, (_NEUTRAL, _NAMES_AND_LENGTHS, _KERNELS)))


def is_model(path: Path) -> bool:
    """Whether this is a Hugging Face folder."""
    return (path / SETTINGS).is_file()


def family_at(folder: str | Path) -> str:
    """The model_type of a Hugging Face folder; empty for any other path."""
    path = Path(folder).expanduser() / SETTINGS
    return str(read_json(path).get("model_type", "")) if path.is_file() else ""


def load(
    folder: str | Path, device: torch.device | str = "cpu", grows: bool = False
) -> tuple[Transformer, Tokenizer]:
    """A model and its tokenizer from a Hugging Face folder; weights keep their precision.

    grows: the tokenizer may have more tokens than the model has rows; the caller adds them.

    Raises:
        SettingError: the family or a setting is not known, or a file is broken.
    """
    config, weights, tokenizer = parts(folder, grows)
    model = assemble(config, weights, str(folder), device)
    model.trained_on = read_trained_on(Path(folder))
    return model, tokenizer


def parts(
    folder: str | Path, grows: bool = False
) -> tuple[TransformerConfig, Iterator[tuple[str, Tensor]], Tokenizer]:
    """The parts that `load` assembles; weights come under our names, one at a time."""
    folder = Path(folder)
    if not folder.is_dir():
        raise SettingError(f"{folder}: there is no such folder")
    family, config, blocks = read_config(folder / SETTINGS)
    tokenizer = Tokenizer.load(folder)
    if not grows:
        tokenizer = within_rows(tokenizer, config.vocabulary, folder)
    return config, _weights(folder, family, config, blocks), tokenizer


def read_config(path: Path) -> tuple[Family, TransformerConfig, Blocks | None]:
    """The family of a `config.json`, our settings for it, and the blocks of its fp8 weights.

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
            "mxfp4 of GPT-OSS; use the folder that is not quantised"
        )
    if method == "fp8":
        try:
            blocks = read_blocks(left.pop("quantization_config"))
        except SettingError as error:
            raise SettingError(f"{path}: quantization_config.{error}") from None
    config = known[name].config(left, str(path))
    classes = given.get("architectures")
    if known[name].classifier in (classes if isinstance(classes, list) else [classes]):
        config = scalar_config(config, given, path)
    return known[name], config, blocks


def _weights(
    folder: Path, family: Family, config: TransformerConfig, blocks: Blocks | None
) -> Iterator[tuple[str, Tensor]]:
    resolved = config.resolved()
    names = family.tensor_rules(resolved)
    tensors = (each for shard in _shards(folder) for each in shard.tensors())
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
        # Old checkpoints contain computed tensors, and some a second copy of a tied head.
        again = name.endswith(COMPUTED) or (config.tied and name == "head.weight")
        if not again and not _is_mtp(name, family, config):
            yield name, tensor


def _is_mtp(name: str, family: Family, config: TransformerConfig) -> bool:
    """Whether a tensor is of a layer after the last one, for multi-token prediction."""
    layer = name.removeprefix("blocks.").removeprefix("model.layers.").partition(".")[0]
    return family.mtp_layers and layer.isdigit() and int(layer) >= config.layers


def _experts(config: TransformerConfig) -> int:
    return max((mlp.experts for mlp in config.mlp if isinstance(mlp, MoE)), default=0)


class Shard(NamedTuple):
    """A file of tensors. older: names of those that the index reads from another file."""

    path: Path
    older: Collection[str] = ()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        read = read_pickled if self.path.suffix == ".bin" else read_safetensors
        return (each for each in read(self.path) if each[0] not in self.older)


def _shards(folder: Path) -> list[Shard]:
    """The files of the weights: a single file before an index, as in transformers."""
    for name in (WEIGHTS, "pytorch_model.bin"):
        whole, index = folder / name, folder / f"{name}.index.json"
        if whole.is_file():
            if index.is_file():
                say(f"{folder}: {name} is read, and not the files that {index.name} lists.")
            return [Shard(whole)]
        if index.is_file():
            return _indexed(index)
    return [Shard(folder / WEIGHTS)]  # missing, which the reader reports


def _indexed(index: Path) -> list[Shard]:
    places = read_json(index).get("weight_map")
    if (
        not isinstance(places, dict)
        or not places
        or not all(isinstance(n, str) for n in places.values())
    ):
        raise SettingError(f"{index}: broken: weight_map names no files")
    # Names only: an index must not refer to files outside its folder.
    files = {name: index.parent / Path(file).name for name, file in places.items()}
    paths = sorted(set(files.values()))
    if paths[0].suffix == ".bin":
        return [Shard(path) for path in paths]
    stored = {path: read_names(path) for path in paths}
    shards = []
    for path, names in stored.items():
        other = {name: files[name] for name in names if files.get(name, path) != path}
        older = {name for name, place in other.items() if name in stored[place]}
        if older:
            say(f"{path}: {len(older)} tensors are not read: {index.name} names other files.")
        shards.append(Shard(path, older))
    return shards
