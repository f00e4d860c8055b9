"""Culm's own model folder.

model.json          settings, precision, quantised layers, digests of the files and of itself
model.safetensors   weights under our names; a tied head once
tokenizer.json ...  the tokenizer and its chat template
README.md           the model card
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from culm.adapt.hyplora import HypLoRA, hyperbolic_adapters
from culm.adapt.quantize import Quantizer
from culm.adapt.quantize.linear import quantized_layers
from culm.atomic import atomic
from culm.config import Config, SettingError, parse
from culm.convert.card import write_card
from culm.convert.models import Model
from culm.convert.weights import assemble, empty, fitting, refuse_adapters, stored
from culm.dtype import DTYPES, cast, name_of
from culm.files import read_json, refuse_nonempty, sha256, write_json
from culm.lineage import NAME as LINEAGE
from culm.model.transformer import Transformer, TransformerConfig
from culm.safetensors import read_safetensors, stream_safetensors, write_safetensors
from culm.tokenizer.rows import check_vocabulary
from culm.tokenizer.tokenizer import Tokenizer

SETTINGS, WEIGHTS = "model.json", "model.safetensors"
GUARDED = (WEIGHTS, "tokenizer.json")  # a flipped bit in these would not be noticed


class Folder(Config):
    """The content of `model.json`."""

    format: Literal[1] = 1
    model: Model
    dtype: Literal["float32", "bfloat16", "float16"]
    quantized: dict[str, Quantizer]
    adapter: HypLoRA | None = None  # which cannot be merged
    trained_on: tuple[str, ...] = ()
    sha256: dict[str, str]


def is_model(path: Path) -> bool:
    """Whether this is a folder that `save` wrote."""
    return (path / SETTINGS).is_file()


def save(model: Transformer, tokenizer: Tokenizer, folder: str | Path, note: str = "") -> None:
    """Write a model folder atomically; an older model folder there is replaced.

    note: a sentence for the model card.

    Raises:
        SettingError: adapters are not merged, a weight is not finite, or the folder contains
            something else.
        OSError: the disk is full or not writable.
    """
    folder = Path(folder)
    refuse_adapters(model)
    refuse_nonempty(folder, SETTINGS)
    weights = {n: cast(t, t.dtype, n).contiguous() for n, t in stored(model).items()}
    with atomic(folder, replaces=(LINEAGE,)) as fresh:
        fresh.mkdir()
        write_safetensors(fresh / WEIGHTS, weights)
        _describe(model, tokenizer, fresh, _title(folder), note)


def stream(
    config: TransformerConfig,
    tensors: Iterable[tuple[str, Tensor]],
    tokenizer: Tokenizer,
    folder: str | Path,
    source: str,
    trained_on: tuple[str, ...] = (),
) -> None:
    """As `save`, for a model whose tensors come one at a time and are never all in memory.

    source: the file or folder of the tensors, for messages. trained_on: as in `Trunk`.

    Raises:
        SettingError: as `save`, or as `culm.convert.weights.assemble`.
        OSError: the disk is full or not writable.
    """
    folder = Path(folder)
    refuse_nonempty(folder, SETTINGS)
    model = empty(config, source)
    model.trained_on = trained_on
    expected = stored(model)
    shapes = {name: tensor.shape for name, tensor in expected.items()}
    with atomic(folder, replaces=(LINEAGE,)) as fresh:
        fresh.mkdir()
        stream_safetensors(fresh / WEIGHTS, shapes, fitting(tensors, expected, source))
        _describe(model, tokenizer, fresh, _title(folder))


def _title(folder: Path) -> str:
    """That of the card: the name of the run, for the folder `model` in it."""
    folder = folder.absolute()
    return folder.parent.name if folder.name == "model" else folder.name


def _describe(
    model: Transformer, tokenizer: Tokenizer, fresh: Path, name: str, note: str = ""
) -> None:
    """Write all files but the weights."""
    tokenizer.save(fresh)
    write_card(model, fresh, name, note=note)
    packed = {name: layer.settings for name, layer in quantized_layers(model).items()}
    adapted = next(iter(hyperbolic_adapters(model).values()), None)
    kept = {} if adapted is None else {"adapter": adapted.settings.model_dump(mode="json")}
    values = {
        "format": 1,
        "model": model.config.model_dump(mode="json"),
        "dtype": name_of(model.dtype),
        "quantized": packed,
        "trained_on": list(model.trained_on),
        "sha256": {file: sha256(fresh / file) for file in GUARDED},
        **kept,
    }
    write_json(fresh / SETTINGS, {**values, "digest": _digest(values)})


def load(folder: str | Path, device: torch.device | str = "cpu") -> tuple[Transformer, Tokenizer]:
    """The model and tokenizer that `save` wrote, bit for bit.

    Raises:
        SettingError: naming the file or tensor that is missing, broken or of the wrong shape.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise SettingError(f"{folder}: there is no such folder")
    about = _read(folder / SETTINGS)
    for name, digest in about.sha256.items():
        _verify(folder / name, digest)
    tensors, source = read_safetensors(folder / WEIGHTS), str(folder / WEIGHTS)
    model = assemble(about.model, tensors, source, device, about.quantized, about.adapter)
    model.dtype, model.trained_on = DTYPES[about.dtype], about.trained_on
    tokenizer = Tokenizer.load(folder)
    check_vocabulary(tokenizer, about.model.vocabulary, folder)
    return model, tokenizer


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> Folder:
    values = read_json(path)
    if values.get("format") != 1:
        raise SettingError(f"{path}: format {values.get('format')!r} is not known; this reads 1")
    if values.pop("digest", None) != _digest(values):
        raise SettingError(f"{path}: broken: it was changed; copy the folder again")
    return parse(Folder, values, str(path))


def _verify(path: Path, digest: str) -> None:
    if not path.is_file():
        raise SettingError(f"{path}: there is no such file; copy the folder again")
    if sha256(path) != digest:
        raise SettingError(f"{path}: broken or truncated: its SHA-256 differs; copy it again")
