"""GGUF, the one-file format of llama.cpp: written in floats or blocks, and read.

The tokenizer is written twice: in llama.cpp's form, with the name of a splitting rule that it
knows, and in full under `tokenizer.huggingface.json`, from which it is read back exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from culm.atomic import atomic
from culm.config import SettingError
from culm.convert import rules
from culm.convert.card import stages_in
from culm.convert.family import Family, family_of
from culm.convert.gguf.blocks import encode
from culm.convert.gguf.families import FAMILIES
from culm.convert.gguf.families.metadata import factors_of
from culm.convert.gguf.kinds import KINDS, kinds_of
from culm.convert.gguf.parts import read_parts
from culm.convert.gguf.tokenizer import add_tokenizer, load_tokenizer
from culm.convert.multipliers import plain_config
from culm.convert.weights import assemble, note_dropped_heads, plain_weights
from culm.log import say
from culm.model.attention.gqa import GQA
from culm.model.rope import Llama3Scaling, Rope
from culm.model.transformer import Transformer, TransformerConfig
from culm.tokenizer.rows import check_vocabulary
from culm.tokenizer.tokenizer import Tokenizer

FACTORS = "rope_freqs.weight"
# Keys that describe the file, or repeat what llama.cpp assumes.
TRAINED_ON = "culm.trained_on"
NEUTRAL = ("tensor_data_layout", "rope.scaling.finetuned", "vocab_size")


def export(
    model: Transformer,
    tokenizer: Tokenizer,
    path: str | Path,
    precision: str = "f16",
    progress: Callable[[int], None] | None = None,
    shown: str | Path | None = None,
) -> None:
    """Write one file that llama.cpp and its relatives load; quantised layers are dequantised.

    precision: one of `gguf.kinds.KINDS`, which gives the type of each tensor. A matrix whose rows
    do not fill the blocks of its type gets another type, and a message says so.
    progress: called with the count of numbers as they are written.
    shown: the path in messages, where the file is moved from `path` afterwards.

    Raises:
        SettingError: llama.cpp has no such model or tokenizer, adapters are not merged, the
            precision is not known, or a number is not finite or too large for it.
        OSError: the disk is full or not writable.
    """
    path = Path(path)
    if precision not in KINDS:
        raise SettingError(f"dtype: {precision!r} is not one of {', '.join(KINDS)}")
    if path.is_file() and path.open("rb").read(4) != b"GGUF":
        raise SettingError(f"{path}: a file of this name exists and is not GGUF; choose another")
    family = family_of(plain_config(model.config).resolved(), FAMILIES, "GGUF")
    note_dropped_heads(model)
    writer = _writer(model, tokenizer, path.stem, family, precision)
    # Twice through the weights: first for the places of all tensors, then for their numbers.
    shapes = {name: tuple(tensor.shape) for name, tensor in _tensors(model, family)}
    kinds, note = kinds_of(shapes, KINDS[precision], model.config.layers)
    for name, kind in kinds.items():
        block, size = gguf.GGML_QUANT_SIZES[kind]
        count = math.prod(shapes[name]) // block * size
        writer.add_tensor_info(name, shapes[name], np.dtype(np.float32), count, kind)
    with atomic(path) as fresh:
        try:
            _write(writer, fresh, _tensors(model, family), kinds, progress)
        finally:
            writer.close()
    if note:
        say(f"{shown or path}: {note}")


def _writer(
    model: Transformer, tokenizer: Tokenizer, name: str, family: Family, precision: str
) -> gguf.GGUFWriter:
    """A writer with all metadata."""
    writer = gguf.GGUFWriter(None, family.name)
    _add_settings(writer, family.untied(plain_config(model.config).resolved()), family)
    writer.add_name(name)
    if model.trained_on:
        writer.add_description(f"Trained on {', then on '.join(model.trained_on)}.")
        writer.add_array(TRAINED_ON, list(model.trained_on))
    writer.add_file_type(KINDS[precision].file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_tokenizer(writer, tokenizer, model.config.vocabulary)
    return writer


def _write(
    writer: gguf.GGUFWriter,
    path: Path,
    tensors: Iterator[tuple[str, Tensor]],
    kinds: Mapping[str, gguf.GGMLQuantizationType],
    progress: Callable[[int], None] | None,
) -> None:
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in tensors:
        numbers = tensor.float().cpu().contiguous().numpy()
        writer.write_tensor_data(encode(numbers, kinds[name], name))
        if progress:
            progress(tensor.numel())


def _add_settings(writer: gguf.GGUFWriter, config: TransformerConfig, family: Family) -> None:
    fields = family.write(config)
    for name in ("tied", "llama3", "vocabulary"):  # implied by the tensors
        fields.pop(name, None)
    for name, value in fields.items():
        key = f"{family.name}.{name}"
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)
    writer.add_vocab_size(config.vocabulary)
    if "rope.dimension_count" not in fields and (size := _rotary_dim(config)) is not None:
        writer.add_rope_dimension_count(size)


def _rotary_dim(config: TransformerConfig) -> int | None:
    attention = config.attention[0]
    rotary = attention.rotary(config.width)
    return rotary and rotary[1]


def _tensors(model: Transformer, family: Family) -> Iterator[tuple[str, Tensor]]:
    config = plain_config(model.config).resolved()
    weights = plain_weights(model)
    if family.own_head and config.tied:
        weights = chain([("head.weight", model.embed.weight.detach())], weights)
    yield from rules.write(weights, family.rules(config))
    rope = config.attention[0].rope if isinstance(config.attention[0], GQA) else None
    if rope is not None and isinstance(rope.scaling, Llama3Scaling):
        yield FACTORS, factors_of(rope, config.attention[0].head_dim)


def load(path: str | Path, device: torch.device | str = "cpu") -> tuple[Transformer, Tokenizer]:
    """The model and tokenizer of any GGUF file, or of the first of several parts; weights become
    fp32.

    Raises:
        SettingError: the file is broken, or its family or kind is not known.
    """
    path = Path(path)
    fields, stored = read_parts(path)
    family, config = read_config(fields, stored, path)
    tokenizer = load_tokenizer(fields, path)
    model = assemble(config, _weights(stored, family, config, path), str(path), device)
    check_vocabulary(tokenizer, config.vocabulary, path)
    model.trained_on = stages_in(fields.get(TRAINED_ON))
    return model, tokenizer


def read_config(
    fields: dict[str, Any], stored: Sequence[gguf.ReaderTensor], path: Path
) -> tuple[Family, TransformerConfig]:
    """The family of a file and our settings for it.

    Raises:
        SettingError: a setting is missing or not understood.
    """
    if (kind := fields.get("general.type", "model")) != "model":
        raise SettingError(
            f"{path}: general.type: it holds {kind!r} and not a model; give the file of the model "
            "(an adapter is read from its PEFT folder)"
        )
    known = {family.name: family for family in FAMILIES}
    name = fields.get("general.architecture")
    if not isinstance(name, str) or name not in known:
        problem = f"general.architecture {name!r} is not one of {', '.join(known)}"
        raise SettingError(f"{path}: {problem}")
    given = {
        key.removeprefix(f"{name}."): _short(value) if isinstance(value, float) else value
        for key, value in fields.items()
        if key.startswith(f"{name}.")
    }
    tensors = {tensor.name: tensor for tensor in stored}
    if "token_embd.weight" not in tensors:
        raise SettingError(
            f"{path}: it has no token_embd.weight: it contains a vocabulary without a model"
        )
    for key in NEUTRAL:
        given.pop(key, None)
    given["vocabulary"] = int(tensors["token_embd.weight"].shape[1])
    given["tied"] = "output.weight" not in tensors
    if FACTORS in tensors:
        given["llama3"] = _llama3(given, tensors[FACTORS], path)
    return known[name], known[name].config(given, str(path))


def _llama3(given: dict[str, Any], stored: gguf.ReaderTensor, path: Path) -> dict[str, Any]:
    """The scaling for the factors in a file: of Llama 3.1, 3.2, or 3.1 with another context."""
    factors = torch.from_numpy(np.array(stored.data, np.float32)).flatten()
    base = float(given.get("rope.freq_base", 10_000.0))
    maximum = round(float(factors.max()), 3)
    for original in (1 << power for power in range(4, 21)):
        scaling = Llama3Scaling(factor=max(maximum, 1.0), original=original)
        found = factors_of(Rope(base=base, scaling=scaling), 2 * len(factors))
        if torch.allclose(found, factors, rtol=1e-4):
            return scaling.model_dump()
    raise SettingError(f"{path}: {FACTORS}: not the factors of a Llama 3 scaling")


def _short(number: float) -> float:
    """The original of a number that was rounded to fp32: 1e-05, not 9.999999747378752e-06."""
    return float(f"{number:.7g}")


def _weights(
    stored: Sequence[gguf.ReaderTensor], family: Family, config: TransformerConfig, path: Path
) -> Iterator[tuple[str, Tensor]]:
    def dequantised() -> Iterator[tuple[str, Tensor]]:
        for tensor in stored:
            try:
                numbers = gguf.dequantize(tensor.data, tensor.tensor_type)
            except NotImplementedError:
                kind = f"tensor {tensor.name} is {tensor.tensor_type.name}"
                raise SettingError(f"{path}: {kind}, which is not read here") from None
            if tensor.name != FACTORS:
                yield tensor.name, torch.from_numpy(np.array(numbers, np.float32))

    try:
        yield from rules.read(dequantised(), family.rules(config.resolved()))
    except RuntimeError as error:  # a tensor that does not fit its settings
        raise SettingError(f"{path}: broken: {error}") from None
    except SettingError as error:
        problem = str(error)
        named = problem.startswith(str(path))
        raise SettingError(problem if named else f"{path}: {problem}") from None
