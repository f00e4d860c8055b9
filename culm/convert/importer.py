"""Any model that Culm reads, by what its path is."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from culm.config import SettingError
from culm.convert import blueprint, gguf, hf, llama2c, native
from culm.model.transformer import Transformer
from culm.tokenizer.tokenizer import Tokenizer

KNOWN = "a run, model or Hugging Face folder, a .gguf file, or a llama2.c .bin file"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load_model(
    path: str | Path, device: torch.device | str = "cpu", tokenizer: str | Path | None = None
) -> tuple[Transformer, Tokenizer]:
    """The model and tokenizer of a run or model folder, a Hugging Face folder or hub id, a `.gguf`,
    or a `.bin` of llama2.c.

    tokenizer: the file beside a `.bin`, which has none within.

    Raises:
        SettingError: nothing there can be read; the message says what can.
    """
    if not str(path):
        raise SettingError("model: its name is empty")
    name, path = str(path), located(path)
    if native.is_model(path):
        return native.load(path, device)
    if hf.is_model(path):
        return hf.load(path, device)
    if path.suffix.lower() == ".gguf" and path.is_file():
        return gguf.load(path, device)
    if path.suffix == ".bin" and path.is_file():
        if tokenizer is None:
            raise SettingError(
                f"{path}: a llama2.c file needs its tokenizer: culm import {path} OUT "
                "--tokenizer FILE.bin makes a folder of both"
            )
        return llama2c.load(path, tokenizer, device)
    if path.exists():
        raise SettingError(f"{path}: cannot be read as a model; known: {KNOWN}")
    if not HUB_ID.fullmatch(name):
        raise SettingError(f"{path}: there is no such file or folder")
    return load_model(_download(name), device)


def located(path: str | Path) -> Path:
    """The file or folder that holds the model of `path`, which may be a run or a quickstart."""
    path = Path(path).expanduser()
    if native.is_model(path) or hf.is_model(path):
        return path
    inner = next((path / name for name in ("model", "chat") if (path / name).is_dir()), None)
    return path if inner is None else located(inner)


def apart(source: str | Path, out: str | Path) -> None:
    """Refuse to write over what is read: a model would be gone for a smaller copy of it.

    Raises:
        SettingError: naming the path.
    """
    if located(source).resolve() == Path(out).resolve():
        raise SettingError(f"{out}: this is the model that is read; choose another name")


def _download(name: str) -> str:
    wanted = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]
    try:
        return snapshot_download(name, allow_patterns=wanted)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        offline = isinstance(error, LocalEntryNotFoundError)
        reason = "the hub cannot be reached" if offline else str(error).strip().splitlines()[0]
        raise SettingError(f"{name}: no such folder, nor downloaded; {reason}") from None


def import_model(path: str | Path, out: str | Path, tokenizer: str | Path | None = None) -> str:
    """Bring a model into a folder of ours, or a blueprint into a model settings file.

    Gives one sentence about what was written.
    """
    out = Path(out)
    apart(path, out)
    if tokenizer is not None and Path(path).suffix != ".bin":
        raise SettingError(f"--tokenizer: {path} has its own; only a .bin of llama2.c has none")
    if Path(path).suffix == ".json" and Path(path).is_file():
        config = blueprint.read(path)
        out = out if out.suffix in (".yaml", ".yml") else out.with_name(f"{out.name}.yaml")
        blueprint.write(config, out)
        return f"{out}: settings of a model with {config.layers} layers of width {config.width}"
    model, own = load_model(path, tokenizer=tokenizer)
    native.save(model, own, out)
    millions = sum(p.numel() for p in model.config.build(device="meta").parameters()) / 1e6
    return f"{out}: a model of {millions:,.2f} million parameters"
