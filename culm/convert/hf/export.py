"""Write Hugging Face folders of every family in `culm.convert.hf.families`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from culm.atomic import atomic
from culm.config import SettingError
from culm.convert import rules
from culm.convert.card import write_card
from culm.convert.family import Family, NoFamilyError, family_of, fits, language_model
from culm.convert.hf.classifier import LABEL, one_head, padded_without_ends
from culm.convert.hf.families import FAMILIES
from culm.convert.hf.folder import SETTINGS, WEIGHTS
from culm.convert.multipliers import plain_config
from culm.convert.rules import ModuleNames
from culm.convert.weights import note_dropped_heads, plain_weights
from culm.dtype import cast, name_of
from culm.files import refuse_nonempty, write_json
from culm.lineage import NAME as LINEAGE
from culm.log import say
from culm.model.rule_updated import rule_updated
from culm.model.transformer import Transformer, TransformerConfig
from culm.safetensors import write_safetensors
from culm.tokenizer.generation import GENERATION
from culm.tokenizer.rows import refuse_words
from culm.tokenizer.tokenizer import Tokenizer


def export(
    model: Transformer,
    tokenizer: Tokenizer,
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[int], None] | None = None,
    family: str = "",
    shard_bytes: int = 5 << 30,
) -> None:
    """Write a folder that transformers, vLLM and others load unchanged.

    A model with a scalar head becomes one of AutoModelForSequenceClassification with one label.
    Quantised layers are dequantised. progress: called with the count of numbers as they are read.
    family: its model_type, if several have the model's shape. shard_bytes: maximum size of a file;
    one file at a time is in memory.

    Raises:
        SettingError: no family has the model's shape, adapters are not merged, a weight is not
            finite or too large for the dtype, or the folder contains something else.
        OSError: the disk is full or not writable.
    """
    folder = Path(folder)
    refuse_words(tokenizer, "transformers")
    config = plain_config(model.config)
    chosen = family_of(config, named(family), "Hugging Face")
    refuse_nonempty(folder, SETTINGS)
    note_dropped_heads(model)
    if config.head == "scalar":
        tokenizer = padded_without_ends(tokenizer)
    if config.scores > 1:
        say(f"{folder}: its {config.scores} heads are written as one, their mean: the reward.")
    with atomic(folder, replaces=(LINEAGE,)) as fresh:
        fresh.mkdir()
        _write_shards(fresh, _tensors(model, chosen, dtype, progress), shard_bytes)
        tokenizer.save(fresh)
        write_json(fresh / SETTINGS, _settings(config, chosen, tokenizer, dtype))
        write_json(fresh / GENERATION, tokenizer.generation_config)
        write_card(model, fresh, folder.name, library="transformers")


def _tensors(
    model: Transformer, family: Family, dtype: torch.dtype, progress: Callable[[int], None] | None
) -> Iterator[tuple[str, Tensor]]:
    """Weights under the names of the family, in the dtype of the file."""
    names = family.tensor_rules(plain_config(model.config).resolved())
    # Selection biases move by thousandths, so they stay exact.
    exact = {buffer.data_ptr() for buffer in rule_updated(model).values()}
    weights = plain_weights(model)
    if model.config.head == "scalar":
        weights = one_head(weights)
    for name, tensor in rules.write(weights, names):
        kind = tensor.dtype if tensor.data_ptr() in exact else dtype
        yield name, cast(tensor, kind, name).cpu().contiguous()
        if progress:
            progress(tensor.numel())


def _write_shards(folder: Path, tensors: Iterator[tuple[str, Tensor]], limit: int) -> None:
    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}

    def write() -> None:
        write_safetensors(folder / f"{len(shards)}.part", held)
        shards.append(list(held))
        held.clear()

    total = size = 0
    for name, tensor in tensors:
        if held and size + tensor.nbytes > limit:
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


def families_of(config: TransformerConfig) -> list[str]:
    """The model_type of every family that has the shape of a model, the preferred one first."""
    return [family.name for family in FAMILIES if fits(family, plain_config(config))]


def _settings(
    config: TransformerConfig, family: Family, tokenizer: Tokenizer, dtype: torch.dtype
) -> dict[str, Any]:
    scalar = config.head == "scalar"
    written = language_model(config) if scalar else config
    return {
        "architectures": [family.classifier if scalar else family.architecture],
        "model_type": family.name,
        **family.write(written.resolved()),
        **(LABEL if scalar else {}),
        "bos_token_id": tokenizer.generation_config["bos_token_id"],
        "eos_token_id": tokenizer.end_of_text,
        "pad_token_id": tokenizer.generation_config["pad_token_id"],
        "dtype": name_of(dtype),
    }


def module_names(config: TransformerConfig, family: str = "") -> ModuleNames:
    """The names of a model's modules in its family, or in the one of this model_type.

    Raises:
        SettingError: no family has its shape.
    """
    plain = _language_model_only(config)
    chosen = family_of(plain, named(family), "Hugging Face")
    return ModuleNames(chosen.rules(plain.resolved()))


def all_module_names(config: TransformerConfig) -> Iterator[ModuleNames]:
    """The names of a model's modules in every family that has its shape, the preferred one first.

    Raises:
        SettingError: no family has its shape.
    """
    plain = _language_model_only(config)
    family_of(plain, FAMILIES, "Hugging Face")
    for family in FAMILIES:
        if fits(family, plain):
            yield ModuleNames(family.rules(plain.resolved()))


def _language_model_only(config: TransformerConfig) -> TransformerConfig:
    if config.head == "scalar":
        raise NoFamilyError(
            "model.head: adapter files are for language models, and this one has a scalar head; "
            "merge the adapter, and export the model"
        )
    return plain_config(config)
