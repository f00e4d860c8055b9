"""Load any model that Culm reads, from its path: ready to use, or to train."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import tokenizers
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from culm import hub
from culm.adapt.merge import merge_verified
from culm.adapt.multi_lora import attach_adapters
from culm.adapt.quantize.linear import is_quantized
from culm.config import SettingError
from culm.convert import gguf, hf, llama2c, native, peft
from culm.convert.peft.settings import base_of
from culm.convert.weights import set_precision
from culm.device import choose_device, choose_precision
from culm.dtype import DTYPES, dtype_of
from culm.files import is_local, is_points
from culm.model.backend import place
from culm.model.transformer import Transformer
from culm.tokenizer.rows import within_rows
from culm.tokenizer.tokenizer import Tokenizer

KNOWN = "a run, model, adapter or Hugging Face folder, a .gguf file, or a llama2.c .bin file"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def read(
    path: str | Path,
    device: str = "auto",
    dtype: str | torch.dtype | None = None,
    adapter: str | Path | None = None,
    adapters: Mapping[str, str | Path] | None = None,
    mtp: bool = True,
) -> tuple[Transformer, Tokenizer]:
    """The parts of `culm.load`. mtp: keep heads of multi-token prediction, if there are any; plain
    decoding is faster without them.
    """
    if adapter is not None and adapters:
        raise SettingError("adapters: cannot be combined with adapter; use one of the two")
    chosen = choose_device(device)
    kind = None if dtype in (None, "auto") else dtype_of(dtype)
    if kind == torch.float16 and chosen.type == "cpu":
        raise SettingError("dtype: float16 matmuls are slow on CPU; use bfloat16")
    model, tokenizer = load_model(path, chosen)
    if not mtp:
        model.drop_mtp()
    if adapter is not None:
        load_adapter(model, adapter)
    if adapters:
        load_adapters(model, adapters)
    if kind is None:
        kind = _choose(model, chosen, fastest=dtype == "auto")
    set_precision(model, kind, str(path))
    return place(model, chosen, kind), tokenizer


def _choose(model: Transformer, device: torch.device, fastest: bool) -> torch.dtype:
    # The fast kernels for quantised weights need bf16.
    if is_quantized(model):
        return torch.bfloat16
    if fastest:
        return DTYPES[choose_precision(device)]
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def load_model(
    path: str | Path, device: torch.device | str = "cpu", tokenizer: str | Path | None = None
) -> tuple[Transformer, Tokenizer]:
    """The model and tokenizer of a run or model folder, a Hugging Face folder or hub id, a `.gguf`,
    or a `.bin` of llama2.c. A folder with an adapter is read as its base with the adapter merged.

    tokenizer: the file for a `.bin`, which contains none.

    Raises:
        SettingError: nothing there is readable; the message says what is.
    """
    if not str(path):
        raise SettingError("model: its name is empty")
    name, path = str(path), find_model(path)
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
    if is_points(path):
        raise SettingError(
            f"{path}: it has points of a graph and no language model; culm inspect and culm eval "
            "read it"
        )
    if (path / "run.yaml").is_file():
        raise SettingError(
            f"{path}: this run has no model yet, as it was stopped before its end; culm train with "
            "the same settings resumes it"
        )
    if path.exists():
        raise SettingError(f"{path}: not a readable model; known: {KNOWN}")
    if not on_hub(name):
        raise SettingError(f"{path}: there is no such file or folder")
    return load_model(download(name), device)


def load_pretrained(name: str) -> tuple[Transformer, Tokenizer]:
    """The model and tokenizer of a Hugging Face folder or hub id, for further training.

    The tokenizer may have more tokens than the model has rows.

    Raises:
        SettingError: it does not exist, or is not readable.
    """
    path = Path(name).expanduser()
    if not path.exists() and on_hub(name):
        path = Path(download(name))
    if not hf.is_model(path):
        raise SettingError(f"{path}: not a Hugging Face folder: it contains no {hf.SETTINGS}")
    return hf.load(path, grows=True)


def _adapted(folder: Path, device: torch.device | str) -> tuple[Transformer, Tokenizer]:
    """The base that an adapter names, with the adapter merged into it."""
    base, revision = base_of(folder)
    if peft.is_adapter(find_model(base)):
        raise SettingError(f"{folder}: its base {base} is an adapter too; import that one first")
    try:
        on_hub = revision and not find_model(base).exists() and HUB_ID.fullmatch(base)
        model, tokenizer = load_model(download(base, revision) if on_hub else base, device)
    except SettingError as error:
        raise SettingError(f"{folder}: the base of this adapter: {error}") from None
    peft.load(model, folder)
    merge_verified(model)
    model.trained_on = (*model.trained_on, "the data of an adapter")
    if (folder / "tokenizer.json").is_file():  # it may have a new chat template
        own = _generating_as(tokenizer, Tokenizer.load(folder))
        tokenizer = within_rows(own, model.config.vocabulary, folder)
    return model, tokenizer


def _generating_as(base: Tokenizer, own: Tokenizer) -> Tokenizer:
    """The tokenizer of an adapter with the ends and generation settings of its base.

    PEFT saves none of them; Culm does.
    """
    if own.generation or "stop_ids" in own.settings:
        return own
    inner = tokenizers.Tokenizer.from_str(own.json)
    stops = (id for id in base.stop_ids if id < own.vocabulary)
    return Tokenizer(inner, own.settings, own.template, stops, base.generation)


def load_adapter(model: Transformer, path: str | Path) -> int:
    """Add an adapter to the layers of its base; returns their number.

    path: its folder, the folder of the run that trained it, or a hub id.

    Raises:
        SettingError: there is none, it is not readable, or it is for another base.
    """
    return peft.load(model, _adapter_folder(path))


def load_adapters(model: Transformer, paths: Mapping[str, str | Path]) -> int:
    """Add several adapters to their common base, by name; returns the number of adapted layers.

    paths: as in `load_adapter`.

    Raises:
        SettingError: as `load_adapter`, or one adapts layers outside the blocks. The model is then
            unchanged.
    """
    if not all(paths):
        raise SettingError("adapters: a name is empty")
    folders = {name: _adapter_folder(path) for name, path in paths.items()}
    return attach_adapters(
        model, {name: peft.read_adapters(model, path) for name, path in folders.items()}
    )


def _adapter_folder(path: str | Path) -> Path:
    name, path = str(path), Path(path).expanduser()
    for folder in (path, path / "adapter"):
        if peft.is_adapter(folder):
            return folder
    if path.exists() or not on_hub(name):
        raise SettingError(f"{path}: no adapter folder (with an adapter_config.json)")
    return _adapter_folder(download(name))


def find_model(path: str | Path) -> Path:
    """The file or folder that holds the model of `path`, which may be a run or a quickstart."""
    path = Path(path).expanduser()
    if native.is_model(path) or hf.is_model(path):
        return path
    inner = next((path / name for name in ("model", "chat") if (path / name).is_dir()), None)
    return path if inner is None else find_model(inner)


def refuse_overwrite(source: str | Path, out: str | Path) -> None:
    """Refuse to overwrite what is read: a model would be lost for a smaller copy of it.

    Raises:
        SettingError: naming the path.
    """
    found, target = find_model(source), Path(out).expanduser().resolve()
    if found.resolve() == target:
        raise SettingError(f"{out}: this is the source model; choose another name")
    whole = native.is_model(found) or hf.is_model(found)
    if not whole and peft.is_adapter(found) and find_model(base_of(found)[0]).resolve() == target:
        raise SettingError(f"{out}: this is the base of the adapter {source}; choose another name")


def on_hub(name: str) -> bool:
    """Whether a name can be that of a hub, and not of a path here."""
    return bool(HUB_ID.fullmatch(name)) and not is_local(name)


def download(name: str, revision: str | None = None) -> str:
    """The folder of a model on the hub, downloaded once. revision: a version; default: the newest.

    Raises:
        SettingError: there is none, or the hub is not reachable.
    """
    wanted = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]
    offline = hub.commit_of(name, "model", revision) is None
    try:
        return snapshot_download(
            name, revision=revision, allow_patterns=wanted, local_files_only=offline
        )
    except LocalEntryNotFoundError:
        why = "the hub is not reachable: go online once, or give a folder"
    except HfHubHTTPError as error:
        why = hub.reason(error, "model")
    except OSError as error:  # a full disk
        why = str(error)
    raise SettingError(f"{name}: no such folder, and not downloaded; {why}")
