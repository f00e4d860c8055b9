"""GGUF, the one-file format of llama.cpp: written in floats or blocks, and our own files read.

The tokenizer is written twice: as llama.cpp wants it, with the name of a splitting rule that it
knows, and whole under `tokenizer.huggingface.json`, from which it is read back exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from culm.config import SettingError, parse
from culm.convert import gguf_header
from culm.convert.family import Shape, half_split, interleaved, shape_of
from culm.convert.gguf_blocks import encode
from culm.convert.gguf_kinds import KINDS, kinds_of
from culm.convert.gguf_tokenizer import add_tokenizer, load_tokenizer
from culm.convert.weights import assemble, plain_weights
from culm.files import atomic
from culm.log import say
from culm.model.names import rename
from culm.model.transformer import Transformer, TransformerConfig
from culm.tokenizer.tokenizer import Tokenizer, check_vocabulary


def export(
    model: Transformer,
    tokenizer: Tokenizer,
    path: str | Path,
    precision: str = "f16",
    told: Callable[[int], None] | None = None,
) -> None:
    """Write one file that llama.cpp and its relatives load; quantised layers are multiplied out.

    precision: one of `gguf_kinds.KINDS`, which says what each tensor becomes. Where the rows of a
    matrix do not fill the blocks of its type it is of another, and a line says so.
    told: called with the count of numbers as they are written.

    Raises:
        SettingError: llama.cpp has no such model or tokenizer, adapters are not merged, the
            precision is not known, or a number is not finite or too large for it.
        OSError: the disk is full or may not be written to.
    """
    path = Path(path)
    if precision not in KINDS:
        raise SettingError(f"dtype: {precision!r} is not one of {', '.join(KINDS)}")
    if path.is_file() and path.open("rb").read(4) != b"GGUF":
        raise SettingError(f"{path}: there is a file of this name that is no GGUF; choose another")
    shape, mixture = shape_of(model.config, "GGUF"), KINDS[precision]
    if shape.rope.scaling is not None:
        raise SettingError("model.attention.rope.scaling: it is not written to GGUF here")
    writer = gguf.GGUFWriter(None, shape.family)
    _add_settings(writer, model.config, shape)
    writer.add_name(path.stem)
    writer.add_file_type(mixture.file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_tokenizer(writer, tokenizer, model.config.vocabulary)
    # Twice through the weights: first their places, then one after the other their numbers.
    shapes = {name: tuple(tensor.shape) for name, tensor in _tensors(model, shape)}
    kinds, note = kinds_of(shapes, mixture, model.config.layers)
    for name, kind in kinds.items():
        block, size = gguf.GGML_QUANT_SIZES[kind]
        count = math.prod(shapes[name]) // block * size
        writer.add_tensor_info(name, shapes[name], np.dtype(np.float32), count, kind)
    with atomic(path) as fresh:
        try:
            writer.write_header_to_file(fresh)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for name, tensor in _tensors(model, shape):
                numbers = tensor.float().cpu().contiguous().numpy()
                writer.write_tensor_data(encode(numbers, kinds[name], name))
                if told:
                    told(tensor.numel())
        finally:
            writer.close()
    if note:
        say(f"{path}: {note}")


def _add_settings(writer: gguf.GGUFWriter, config: TransformerConfig, shape: Shape) -> None:
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope.base)
    writer.add_layer_norm_rms_eps(config.eps)
    writer.add_vocab_size(config.vocabulary)


def _tensors(model: Transformer, shape: Shape) -> Iterator[tuple[str, Tensor]]:
    heads = _permuted(shape)
    for name, tensor in plain_weights(model):
        part = name.split(".")[-2]
        tensor = interleaved(tensor, heads[part]) if part in heads else tensor
        yield str(rename(name, "culm", "gguf")), tensor


def _permuted(shape: Shape) -> dict[str, int]:
    """Heads of the projections that llama.cpp keeps in the interleaved layout: Llama's alone."""
    return {"q": shape.heads, "k": shape.kv_heads} if shape.family == "llama" else {}


def load(path: str | Path, device: torch.device | str = "cpu") -> tuple[Transformer, Tokenizer]:
    """The model and tokenizer of a file that `export` wrote; weights become fp32.

    Raises:
        SettingError: the file is broken, or not of our writing.
    """
    path = Path(path)
    fields = gguf_header.read(path)
    try:
        reader = gguf.GGUFReader(path)
    except Exception as error:  # the package lets whatever happens escape
        raise SettingError(f"{path}: broken or no GGUF file: {error}") from None
    try:
        config = parse(TransformerConfig, _values(fields, reader), str(path))
    except KeyError as error:
        raise SettingError(f"{path}: not written by Culm: it has no {error.args[0]}") from None
    except (TypeError, ValueError) as error:
        raise SettingError(f"{path}: broken or not written by Culm: {error}") from None
    tokenizer = load_tokenizer(fields, path)
    shape = shape_of(config, "GGUF")
    if shape.family != fields["general.architecture"]:
        raise SettingError(f"{path}: broken: its tensors are those of a {shape.family} model")
    model = assemble(config, _weights(reader, shape, path), str(path), device)
    check_vocabulary(tokenizer, config.vocabulary, path)
    return model, tokenizer


def _values(fields: dict[str, Any], reader: gguf.GGUFReader) -> dict[str, Any]:
    family = fields["general.architecture"]
    if family not in ("llama", "qwen2", "qwen3"):
        raise ValueError(f"general.architecture {family!r} is not one of llama, qwen2, qwen3")
    if fields.get(f"{family}.rope.scaling.type", "none") != "none":
        raise ValueError(f"{family}.rope.scaling.type is not read here")
    names = {tensor.name for tensor in reader.tensors}
    return {
        "vocabulary": fields[f"{family}.vocab_size"],
        "width": fields[f"{family}.embedding_length"],
        "layers": fields[f"{family}.block_count"],
        "context": fields[f"{family}.context_length"],
        "eps": _short(fields[f"{family}.attention.layer_norm_rms_epsilon"]),
        "tied": "output.weight" not in names,
        "mlp": {"kind": "swiglu", "hidden": fields[f"{family}.feed_forward_length"]},
        "attention": {
            "kind": "gqa",
            "heads": fields[f"{family}.attention.head_count"],
            "kv_heads": fields[f"{family}.attention.head_count_kv"],
            "head_dim": fields[f"{family}.attention.key_length"],
            "qk_norm": family == "qwen3",
            "bias": family == "qwen2",
            "rope": {"base": _short(fields[f"{family}.rope.freq_base"])},
        },
    }


def _short(number: float) -> float:
    """What was meant by a number that went through fp32: 1e-05, not 9.999999747378752e-06."""
    return float(f"{number:.7g}")


def _weights(reader: gguf.GGUFReader, shape: Shape, path: Path) -> Iterator[tuple[str, Tensor]]:
    heads = _permuted(shape)
    for stored in reader.tensors:
        name = rename(stored.name, "gguf", "culm") or stored.name
        try:
            numbers = gguf.dequantize(stored.data, stored.tensor_type)
        except NotImplementedError:
            kind = f"tensor {stored.name} is {stored.tensor_type.name}"
            raise SettingError(f"{path}: {kind}, which is not read here") from None
        tensor, part = torch.from_numpy(np.array(numbers, np.float32)), name.split(".")[-2]
        if part in heads:
            if len(tensor) % (2 * heads[part]):
                rows = f"tensor {stored.name} has {len(tensor)} rows"
                raise SettingError(f"{path}: broken: {rows}, not those of {heads[part]} heads")
            tensor = half_split(tensor, heads[part])
        yield name, tensor
