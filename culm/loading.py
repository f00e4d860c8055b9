"""Where a model comes from: what a path means, on which device, in which precision."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from culm.config import SettingError
from culm.device import choose_device
from culm.model.transformer import Transformer
from culm.tokenizer.tokenizer import Tokenizer


def read(
    path: str | Path, device: str = "auto", dtype: str | torch.dtype | None = None
) -> tuple[Transformer, Tokenizer]:
    """The parts of `culm.load`."""
    place, kind = choose_device(device), _dtype(dtype)
    model, tokenizer = _open(str(path), place)
    if kind is None:
        # The fast kernels for weights of few bits take bf16; they are what such a model is for.
        packed = any(not buffer.is_floating_point() for buffer in model.buffers())
        kind = torch.bfloat16 if packed or place.type != "cpu" else torch.float32
    if kind == torch.float16 and place.type == "cpu":
        raise SettingError("dtype: float16 has no fast products on a CPU; take bfloat16")
    for weight in model.parameters():  # not the buffers: angles and scales keep their precision
        weight.data = weight.data.to(kind)
    model.dtype = kind
    return model, tokenizer


def _dtype(given: str | torch.dtype | None) -> torch.dtype | None:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if given is None or given in known.values():
        return given  # type: ignore[return-value]
    if given not in known:
        raise SettingError(f"dtype: {given!r} is not one of {', '.join(known)}")
    return known[given]


def _open(path: str, device: torch.device) -> tuple[Transformer, Tokenizer]:
    here = Path(path)
    if here.suffix == ".gguf" and here.is_file():
        from culm.convert.gguf import load as load_gguf

        return load_gguf(here, device)
    if (here / "model.json").is_file():
        from culm.convert.native import load as load_native

        return load_native(here, device)
    if (here / "config.json").is_file():
        from culm.convert.hf import load as load_hf

        return load_hf(here, device)
    if (here / "model").is_dir():
        return _open(str(here / "model"), device)
    if here.exists():
        raise SettingError(
            f"{path}: neither a run, a model or Hugging Face folder, nor a .gguf file"
        )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        raise SettingError(f"{path}: there is no such file or folder")
    return _open(_download(path), device)


def _download(name: str) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]
    try:
        return snapshot_download(name, allow_patterns=wanted)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SettingError(f"{name}: no such folder, and not on the hub either: {reason}") from None
