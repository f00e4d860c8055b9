"""Any model that Culm reads, by what its path is."""

from __future__ import annotations

from pathlib import Path

import torch

from culm.config import SettingError
from culm.convert import blueprint, gguf, hf, llama2c, native
from culm.model.transformer import Transformer
from culm.tokenizer.tokenizer import Tokenizer

KNOWN = "a Culm or Hugging Face folder, a .gguf file, a llama2.c .bin file, or a blueprint .json"


def load_model(
    path: str | Path, device: torch.device | str = "cpu", tokenizer: str | Path | None = None
) -> tuple[Transformer, Tokenizer]:
    """The model and tokenizer at a path: a folder of ours or Hugging Face's, `.gguf`, or `.bin`.

    tokenizer: the file beside a `.bin`, which has none within.

    Raises:
        SettingError: nothing there can be read; the message says what can.
    """
    path = Path(path)
    if not path.exists():
        raise SettingError(f"{path}: there is no such file or folder")
    if native.is_model(path):
        return native.load(path, device)
    if (path / "config.json").is_file():
        return hf.load(path, device)
    if path.suffix == ".gguf":
        return gguf.load(path, device)
    if path.suffix == ".bin" and path.is_file():
        if tokenizer is None:
            raise SettingError(f"{path}: a llama2.c file needs its tokenizer: --tokenizer FILE.bin")
        return llama2c.load(path, tokenizer, device)
    raise SettingError(f"{path}: cannot be read as a model; known: {KNOWN}")


def import_model(path: str | Path, out: str | Path, tokenizer: str | Path | None = None) -> str:
    """Bring a model into a folder of ours, or a blueprint into a model settings file.

    Gives one sentence about what was written.
    """
    path, out = Path(path), Path(out)
    if path.suffix == ".json" and path.is_file():
        config = blueprint.read(path)
        out = out if out.suffix in (".yaml", ".yml") else out.with_name(f"{out.name}.yaml")
        blueprint.write(config, out)
        return f"{out}: settings of a model with {config.layers} layers of width {config.width}"
    model, words = load_model(path, tokenizer=tokenizer)
    native.save(model, words, out)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    return f"{out}: a model of {millions:,.2f} million parameters"
