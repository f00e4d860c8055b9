"""A finished model in smaller or other forms: int8, int4, Hugging Face, GGUF."""

from __future__ import annotations

from pathlib import Path

import torch

from culm.adapt.quantize import Quantizer
from culm.config import SettingError, parse
from culm.convert import gguf, hf, native
from culm.loading import read
from culm.model.transformer import Transformer
from culm.tokenizer.tokenizer import Tokenizer


def quantize(source: str | Path, out: str | Path, to: str) -> Path:
    """Write the model of `source` with smaller weights to a new folder.

    to: the kind of a quantiser, as "int8".
    """
    quantizer = parse(Quantizer, to, "to")  # type: ignore[arg-type]
    model, tokenizer = read(source, "cpu", torch.float32)
    quantizer.apply(model)  # type: ignore[attr-defined]
    native.save(model, tokenizer, out)
    return Path(out)


def export(source: str | Path, out: str | Path, dtype: str = "") -> Path:
    """Write the model of `source` for other programs: to `*.gguf`, or a Hugging Face folder.

    dtype: f32, f16 (if not given) or q8_0 for GGUF; float32 or bfloat16 (if not given) for a folder.
    """
    model, tokenizer = read(source, "cpu", torch.float32)
    write_export(model, tokenizer, Path(out), dtype)
    return Path(out)


def write_export(model: Transformer, tokenizer: Tokenizer, out: Path, dtype: str) -> None:
    """As `export`, of a model that is loaded."""
    if out.suffix == ".gguf":
        gguf.export(model, tokenizer, out, _known(dtype or "f16", ("f32", "f16", "q8_0")))
        return
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    hf.export(model, tokenizer, out, kinds[_known(dtype or "bfloat16", tuple(kinds))])


def _known(dtype: str, known: tuple[str, ...]) -> str:
    if dtype not in known:
        raise SettingError(f"dtype: {dtype!r} is not one of {', '.join(known)}")
    return dtype


def size_of(path: Path) -> int:
    """Bytes of weights in a file or folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*.safetensors"))
