"""A finished model in smaller or other forms: int8, int4, Hugging Face, GGUF."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar, get_args

import torch

from culm.adapt.quantize import Quantizer
from culm.config import SettingError, parse
from culm.convert import gguf, hf, native
from culm.loading import read
from culm.model.transformer import Transformer
from culm.tokenizer.tokenizer import Tokenizer

T = TypeVar("T")


def quantize(source: str | Path, out: str | Path, to: str) -> Path:
    """Write the model of `source` with smaller weights to a new folder.

    to: the kind of a quantiser, as "int8".
    """
    quantizer = parse(Quantizer, to, "to")
    model, tokenizer = read(source, "cpu", torch.float32)
    quantizer.apply(model)
    native.save(model, tokenizer, out)
    return Path(out)


def export(source: str | Path, out: str | Path, dtype: str = "") -> Path:
    """Write the model of `source` for other programs: to `*.gguf`, or a Hugging Face folder.

    dtype: f32, f16 or q8_0 for GGUF, f16 if not given; for a folder float32 or bfloat16, the
    latter if not given.
    """
    model, tokenizer = read(source, "cpu", torch.float32)
    write_export(model, tokenizer, Path(out), dtype)
    return Path(out)


def write_export(model: Transformer, tokenizer: Tokenizer, out: Path, dtype: str) -> None:
    """As `export`, of a model that is loaded."""
    if out.suffix == ".gguf":
        precision = _chosen(dtype or "f16", {kind: kind for kind in get_args(gguf.Precision)})
        gguf.export(model, tokenizer, out, precision)
    else:
        kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
        hf.export(model, tokenizer, out, _chosen(dtype or "bfloat16", kinds))


def _chosen(dtype: str, known: Mapping[str, T]) -> T:
    if dtype not in known:
        raise SettingError(f"dtype: {dtype!r} is not one of {', '.join(known)}")
    return known[dtype]


def size_of(path: Path) -> int:
    """Bytes of weights in a file or folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*.safetensors"))
