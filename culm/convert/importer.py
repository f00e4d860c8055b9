"""Any model that Culm reads, by what its path is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from culm.adapt.merge import merge_verified
from culm.adapt.resident import reside
from culm.config import SettingError
from culm.convert import blueprint, gguf, hf, llama2c, native, peft
from culm.convert.peft_settings import base_of
from culm.model.transformer import Transformer
from culm.tokenizer.tokenizer import Tokenizer, check_vocabulary

KNOWN = "a run, model, adapter or Hugging Face folder, a .gguf file, or a llama2.c .bin file"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load_model(
    path: str | Path, device: torch.device | str = "cpu", tokenizer: str | Path | None = None
) -> tuple[Transformer, Tokenizer]:
    """The model and tokenizer of a run or model folder, a Hugging Face folder or hub id, a `.gguf`,
    or a `.bin` of llama2.c. A folder with an adapter is read as its base with the adapter merged.

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
    if peft.is_adapter(path):
        return _adapted(path, device)
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


def load_pretrained(name: str) -> tuple[Transformer, Tokenizer]:
    """The model and tokenizer of a Hugging Face folder or hub id, to be trained on.

    The tokenizer may have more tokens than the model has rows.

    Raises:
        SettingError: it is not there, or cannot be read.
    """
    path = Path(name).expanduser()
    if not path.exists() and HUB_ID.fullmatch(name):
        path = Path(_download(name))
    if not hf.is_model(path):
        raise SettingError(f"{path}: no Hugging Face folder: there is no {hf.SETTINGS} in it")
    return hf.load(path, grows=True)


def _adapted(folder: Path, device: torch.device | str) -> tuple[Transformer, Tokenizer]:
    """The base that an adapter names, with the adapter merged into it."""
    base = base_of(folder)
    if peft.is_adapter(located(base)):
        raise SettingError(f"{folder}: its base {base} is an adapter too; import that one first")
    try:
        model, tokenizer = load_model(base, device)
    except SettingError as error:
        raise SettingError(f"{folder}: the base of this adapter: {error}") from None
    peft.load(model, folder)
    merge_verified(model)
    if (folder / "tokenizer.json").is_file():  # it may have got another chat template
        tokenizer = Tokenizer.load(folder)
        check_vocabulary(tokenizer, model.config.vocabulary, folder)
    return model, tokenizer


def load_adapter(model: Transformer, path: str | Path) -> int:
    """Put an adapter beside the layers of its base; gives how many.

    path: its folder, the folder of the run that trained it, or a hub id.

    Raises:
        SettingError: there is none, it cannot be read, or it is for another base.
    """
    return peft.load(model, _adapter_folder(path))


def load_adapters(model: Transformer, paths: Mapping[str, str | Path]) -> int:
    """Put several adapters beside the layers of their one base, by name; gives to how many layers.

    paths: as of `load_adapter`.

    Raises:
        SettingError: as `load_adapter`, or one adapts more than layers of the blocks. The model is
            then as it was.
    """
    if not all(paths):
        raise SettingError("adapters: a name is empty")
    folders = {name: _adapter_folder(path) for name, path in paths.items()}
    return reside(model, {name: peft.beside(model, path) for name, path in folders.items()})


def _adapter_folder(path: str | Path) -> Path:
    name, path = str(path), Path(path).expanduser()
    for folder in (path, path / "adapter"):
        if peft.is_adapter(folder):
            return folder
    if path.exists() or not HUB_ID.fullmatch(name):
        raise SettingError(f"{path}: there is no adapter, whose folder holds adapter_config.json")
    return _adapter_folder(_download(name))


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
        reason = (
            "the hub cannot be reached: go online once, or give a folder"
            if offline
            else str(error).strip().splitlines()[0]
        )
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
    source = located(path)
    if not source.exists() and HUB_ID.fullmatch(str(path)):
        source = Path(_download(str(path)))
    if hf.is_model(source) and not native.is_model(source):  # one tensor at a time
        config, weights, own = hf.parts(source)
        native.stream(config, weights, own, out, str(source))
    else:
        model, own = load_model(source, tokenizer=tokenizer)
        config = model.config
        native.save(model, own, out)
    millions = sum(p.numel() for p in config.build(device="meta").parameters()) / 1e6
    return f"{out}: a model of {millions:,.2f} million parameters"
