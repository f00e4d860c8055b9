"""Adapter folders in the format of PEFT, both ways, for the names of the Llama line.

adapter_config.json         rank, alpha, which layers, and the name of the base model
adapter_model.safetensors   A and B under the layers' Hugging Face names, modules trained whole

The tensors also carry the fingerprint of the base model, at which only Culm looks.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from culm.adapt.lora import LoRALinear, plain
from culm.adapt.quantize.linear import QuantizedLinear
from culm.adapt.replace import note_untied, replace
from culm.config import SettingError
from culm.convert.hf import module_names
from culm.convert.peft.settings import NAME, PeftSettings, read_settings
from culm.convert.rules import ModuleNames
from culm.convert.weights import fingerprint
from culm.model.linear import Linear
from culm.model.norm import Norm
from culm.model.transformer import Transformer
from culm.safetensors import read_metadata, read_safetensors

WEIGHTS, PICKLED = "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
BASE = "culm.base"
PARTS = {"lora_A.weight": "a", "lora_B.weight": "b", "lora_magnitude_vector": "magnitude"}
COPY = {"base_layer.weight": "base"}  # of an adapted head PEFT writes the base's weights too

Parts = dict[str, dict[str, Tensor]]  # tensors of modules: our name, then that of the parameter


def is_adapter(path: Path) -> bool:
    """Whether this is a folder with an adapter."""
    return (path / NAME).is_file()


def load(model: Transformer, folder: str | Path) -> int:
    """Freeze a model and put the adapter of a folder beside its layers; gives to how many.

    Modules that were trained whole take the place of the model's own. An adapter that Culm wrote is
    held against the fingerprint of its base; of any other only names and shapes can be.

    Raises:
        SettingError: the folder is broken, its adapter is of a kind that is not known here, or was
            made for another base. The model is then as it was.
    """
    made, whole, settings = _read_folder(model, Path(folder))
    model.requires_grad_(False)
    _put(model, whole, settings.keeps_tied)
    return replace(model, lambda name, _: name in made, lambda name, _: made[name])


def read_adapters(model: Transformer, folder: str | Path) -> dict[str, LoRALinear]:
    """The adapted layers of a folder by name, made for a model that stays as it is.

    Raises:
        SettingError: as `load`, or it also holds modules that were trained whole.
    """
    made, whole, _ = _read_folder(model, Path(folder))
    if whole:
        raise SettingError(
            f"{folder}: {min(whole)} was trained whole, so it cannot share the model with others; "
            "merge it (culm import) and serve the result by itself"
        )
    return made


def _read_folder(
    model: Transformer, folder: Path
) -> tuple[dict[str, LoRALinear], Parts, PeftSettings]:
    """Adapted layers, modules that were trained whole, and settings; held against the model."""
    settings, path = read_settings(folder), folder / WEIGHTS
    if not path.is_file() and (folder / PICKLED).is_file():
        raise SettingError(f"{folder}: {PICKLED} may run code; save it again as {WEIGHTS}")
    layers, whole = _read(path, module_names(model.config))
    made = {name: _adapter(model, name, parts, settings, path) for name, parts in layers.items()}
    for name, parts in whole.items():
        _check_whole(model, name, parts, path)
    tied = model.config.tied and "head" in made
    if (both := whole.keys() & made.keys()) or (tied and "embed" in whole):
        name = min(both, default="embed")
        raise SettingError(f"{path}: {name} is trained whole, and it or its tied head is adapted")
    known = read_metadata(path).get(BASE)
    if known is not None and known != fingerprint(model, whole):
        raise _other(path, "it was trained beside other weights than these")
    return made, whole, settings


def _read(path: Path, names: ModuleNames) -> tuple[Parts, Parts]:
    """Tensors of adapted layers and of whole modules."""
    layers: Parts = {}
    whole: Parts = {}
    known = PARTS | COPY
    for key, tensor in read_safetensors(path):
        if not (tensor.is_floating_point() and tensor.isfinite().all()):
            raise SettingError(
                f"{path}: {key} holds what is no finite number; take an earlier checkpoint"
            )
        full = key.removeprefix(PREFIX)
        theirs = next((part for part in known if full.endswith(f".{part}")), None)
        if theirs is None and ".lora_" in full:
            raise SettingError(f"{path}: {full}: an adapter of this kind is not read here")
        module, part = (full.removesuffix(f".{theirs}"), known[theirs]) if theirs else _cut(full)
        name = names.ours(module)
        if name is None:
            raise _other(path, f"{full} is in no model of this family")
        place = layers if theirs else whole
        place.setdefault(name, {})[part] = tensor
    if not layers:
        raise SettingError(f"{path}: it holds no adapter of a layer")
    return layers, whole


def _cut(name: str) -> tuple[str, str]:
    module, _, part = name.rpartition(".")
    return module, part


def _adapter(
    model: Transformer, name: str, parts: dict[str, Tensor], settings: PeftSettings, path: Path
) -> LoRALinear:
    """The adapter of one layer, held against the layer."""
    base = _module(model, name, path)
    if not isinstance(base, Linear | QuantizedLinear):
        raise _other(path, f"{name} is no plain or quantised linear layer")
    copy = parts.pop("base", None)
    if copy is not None and isinstance(base, Linear):
        own = base.weight.detach().to(copy)
        if own.shape != copy.shape or not torch.allclose(own, copy, rtol=0.01, atol=1e-6):  # bf16
            raise _other(path, f"the weights of {name} below it were not these")
    wanted = {"a", "b", "magnitude"} if settings.lora.dora else {"a", "b"}
    if parts.keys() != wanted:
        odd = min(parts.keys() ^ wanted)
        told = "is missing" if odd in wanted else "is there, but use_dora is not set"
        raise SettingError(f"{path}: {odd} of {name} {told}")
    rank, given = parts["a"].shape[0] if parts["a"].ndim else 0, settings.lora.rank
    if rank < 1 or (rank != given and not settings.ranks_differ):
        raise SettingError(f"{path}: {name} has rank {rank}, its settings say {given}")
    # Before memory is taken: a shape with a zero in it may claim any rank.
    _check_shape("a", name, parts["a"], (rank, base.in_features), path)
    adapter = settings.lora.model_copy(update={"rank": rank}).adapt(base)
    _check_shapes(adapter, name, parts, path)
    for part, value in parts.items():
        adapter.get_parameter(part).data.copy_(value)
    return adapter


def _module(model: Transformer, name: str, path: Path) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise _other(path, f"this model has no {name}") from None


def _check_whole(model: Transformer, name: str, parts: dict[str, Tensor], path: Path) -> None:
    module = _module(model, name, path)
    if not isinstance(module, Linear | nn.Embedding | Norm):
        raise _other(path, f"{name} is trained whole, which this model has quantised or not at all")
    _check_shapes(module, name, parts, path)


def _check_shapes(module: nn.Module, name: str, parts: dict[str, Tensor], path: Path) -> None:
    own = dict(module.named_parameters(recurse=False))
    if own.keys() != parts.keys():
        raise _other(path, f"{min(own.keys() ^ parts.keys())} of {name} is not in both")
    for part, value in parts.items():
        _check_shape(part, name, value, tuple(own[part].shape), path)


def _check_shape(part: str, name: str, value: Tensor, here: tuple[int, ...], path: Path) -> None:
    if (there := tuple(value.shape)) != here:
        raise _other(path, f"{part} of {name} has the shape {there}, here it is {here}")


@torch.no_grad()
def _put(model: Transformer, whole: Parts, keeps_tied: bool) -> None:
    """Overwrite modules that were trained whole; PEFT parts a head that was tied to one of them."""
    ends = [whole[name]["weight"] for name in ("embed", "head") if name in whole]
    follows = torch.equal(*ends) if len(ends) == 2 else keeps_tied
    if model.config.tied and ends and not follows:
        model.head = plain(model.embed.weight.detach().clone(), None).requires_grad_(False)
        note_untied(model)
    for name, parts in whole.items():
        module = model.get_submodule(name).requires_grad_(True)
        for part, value in parts.items():
            module.get_parameter(part).copy_(value)


def _other(path: Path, reason: str) -> SettingError:
    return SettingError(
        f"{path}: an adapter for another base: {reason}; load it beside the one it was trained on"
    )
