"""Write a finished model quantised or in other formats: int8, int4, NF4, Hugging Face, GGUF."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from culm.adapt.quantize import Quantizers
from culm.adapt.quantize.linear import is_quantized
from culm.adapt.quantize.method import RTN, Method
from culm.adapt.quantize.quantizer import LinearQuantizer
from culm.config import SettingError, parse
from culm.convert import gguf, hf, native
from culm.convert.card import WITHOUT_THOUGHTS, thinks
from culm.convert.family import NoFamilyError
from culm.convert.load import find_model, read, refuse_overwrite
from culm.convert.weights import set_precision
from culm.dtype import dtype_of
from culm.lineage import lineage_of, write_lineage
from culm.log import progress, say
from culm.model.transformer import Transformer
from culm.tokenizer.tokenizer import Tokenizer


def quantize(source: str | Path, out: str | Path, to: str) -> Path:
    """Write the model of `source` quantised, rounded to nearest, to a new folder.

    to: the kind of a quantiser, such as "int8".
    """
    quantizers = parse(Quantizers, to, "to")
    model, tokenizer = read_whole(source, out)
    write_quantized(model, tokenizer, Path(out), quantizers)
    write_made_of(source, out, "quantize", "--to", to)
    return Path(out)


def read_whole(
    source: str | Path, out: str | Path, device: str = "cpu"
) -> tuple[Transformer, Tokenizer]:
    """A model in fp32, to be quantised into another folder.

    Raises:
        SettingError: it is quantised already, or would be overwritten.
    """
    refuse_overwrite(source, out)
    model, tokenizer = read(source, device, torch.float32)
    if is_quantized(model):
        raise SettingError(f"{source}: quantised already; start from the original model")
    return model.eval(), tokenizer


def write_quantized(
    model: Transformer,
    tokenizer: Tokenizer,
    out: Path,
    quantizers: Sequence[LinearQuantizer],
    method: Method = RTN(),
    tokens: Tensor | None = None,
) -> None:
    """Quantise a model in place and write it. Other weights become bfloat16; norms stay in fp32.

    tokens: (N, T) rows for a method that calibrates.
    """
    method.apply(model, quantizers, tokens)
    set_precision(model, torch.bfloat16)  # above all the embedding, which is used in bf16
    native.save(model, tokenizer, out)


def export(source: str | Path, out: str | Path, dtype: str = "", family: str = "") -> Path:
    """Write the model of `source` for other programs: to `*.gguf`, or a Hugging Face folder.

    dtype: for GGUF a name in `gguf.kinds.KINDS`, such as "q4_k_m", f16 if not given; for a folder
    float32, bfloat16 or float16, bfloat16 if not given. family: model_type of the folder, if
    several have the model's shape. A model with parts that no family has becomes a Culm folder,
    and a message says who cannot load it.
    """
    refuse_overwrite(source, out)
    model, tokenizer = read(source, "cpu", torch.float32)
    if thinks(model.trained_on):
        say(f"{source}: {WITHOUT_THOUGHTS}.")
    plain = model.config.model_copy(update={"mtp": None}).build(device="meta")
    numbers = sum(weight.numel() for weight in plain.parameters())
    with progress("export", numbers, "numbers") as bar:
        write_export(model, tokenizer, Path(out), dtype, bar.advance, family)
    options = [
        word
        for name, value in (("--dtype", dtype), ("--family", family))
        if value
        for word in (name, value)
    ]
    write_made_of(source, out, "export", *options)
    return Path(out)


def write_made_of(source: str | Path, out: str | Path, verb: str, *options: str) -> None:
    """Write the record of a model that a verb made from another one."""
    made_of = lineage_of(find_model(source), str(source))
    write_lineage(Path(out), [verb, str(source), str(out), *options], models={"source": made_of})


def write_export(
    model: Transformer,
    tokenizer: Tokenizer,
    out: Path,
    dtype: str,
    progress: Callable[[int], None] | None = None,
    family: str = "",
) -> None:
    """As `export`, for a loaded model; `progress(numbers)` is called as the files grow."""
    if out.suffix.lower() == ".gguf":
        gguf.export(model, tokenizer, out, dtype or "f16", progress)
        return
    kind = dtype_of(dtype or "bfloat16")
    try:
        hf.export(model, tokenizer, out, kind, progress, family)
    except NoFamilyError as error:
        if family or model.config.head == "scalar":
            raise
        note = f"transformers, vLLM and llama.cpp will not load it. {error}."
        set_precision(model, kind)
        model.dtype = kind
        native.save(model, tokenizer, out, note)
        say(f"{out}: a folder of Culm's own; {note}")


def size_of(path: Path) -> int:
    """Bytes of weights in a file or folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*.safetensors"))
