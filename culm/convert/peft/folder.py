"""Read adapter folders in the format of PEFT (`culm.convert.peft.save` writes them).

An adapter is checked against the model before anything of the model changes.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from culm.adapt.lora import LoRALinear, plain
from culm.adapt.quantize.linear import QuantizedLinear
from culm.adapt.replace import note_untied, replace
from culm.config import SettingError
from culm.convert.peft.settings import NAME, PeftSettings, check_targets, read_settings
from culm.convert.peft.tensors import Parts, other_base, read_tensors
from culm.convert.weights import fingerprint
from culm.model.linear import Linear
from culm.model.norm import Norm
from culm.model.transformer import Transformer
from culm.safetensors import read_metadata

WEIGHTS, PICKLED = "adapter_model.safetensors", "adapter_model.bin"
BASE = "culm.base"


def is_adapter(path: Path) -> bool:
    """Whether this is a folder with an adapter."""
    return (path / NAME).is_file()


def load(model: Transformer, folder: str | Path) -> int:
    """Freeze a model and add the adapter of a folder; returns the number of adapted layers.

    Fully trained modules replace those of the model. An adapter that Culm wrote is checked against
    the fingerprint of its base; for any other, names and shapes are checked.

    Raises:
        SettingError: the folder is broken, the kind of adapter is not known, or it was trained for
            another base. The model is then unchanged.
    """
    made, whole, settings = _read_folder(model, Path(folder))
    model.requires_grad_(False)
    _put(model, whole, settings.keeps_tied)
    return replace(model, lambda name, _: name in made, lambda name, _: made[name])


def read_adapters(model: Transformer, folder: str | Path) -> dict[str, LoRALinear]:
    """The adapted layers of a folder by name, built for a model that stays unchanged.

    Raises:
        SettingError: as `load`, or it also contains fully trained modules.
    """
    made, whole, _ = _read_folder(model, Path(folder))
    if whole:
        raise SettingError(
            f"{folder}: {min(whole)} was trained in full, so it cannot share the model; merge it "
            "(culm import) and serve the result separately"
        )
    return made


def _read_folder(
    model: Transformer, folder: Path
) -> tuple[dict[str, LoRALinear], Parts, PeftSettings]:
    """Adapted layers, fully trained modules, and settings, checked against the model."""
    settings, path = read_settings(folder), folder / WEIGHTS
    if not path.is_file() and (folder / PICKLED).is_file():
        raise SettingError(f"{folder}: {PICKLED} could run code; save it again as {WEIGHTS}")
    tensors = read_tensors(path, model.config)
    layers, whole = tensors.layers, tensors.whole
    check_targets(settings, (tensors.theirs[name] for name in layers), folder / NAME)
    made = {
        name: _adapter(model, name, parts, settings.of(tensors.theirs[name]), path)
        for name, parts in layers.items()
    }
    for name, parts in whole.items():
        _check_whole(model, name, parts, path)
    tied = model.config.tied and "head" in made
    if (both := whole.keys() & made.keys()) or (tied and "embed" in whole):
        name = min(both, default="embed")
        raise SettingError(f"{path}: {name} is trained in full, but it or its head is also adapted")
    known = read_metadata(path).get(BASE)
    if known is not None and known != fingerprint(model, whole):
        raise other_base(path, "its base had other weights")
    return made, whole, settings


def _adapter(
    model: Transformer, name: str, parts: dict[str, Tensor], settings: PeftSettings, path: Path
) -> LoRALinear:
    """The adapter of one layer, checked against the layer."""
    base = _module(model, name, path)
    if not isinstance(base, Linear | QuantizedLinear):
        raise other_base(path, f"{name} is not a plain or quantised linear layer")
    copy = parts.pop("base", None)
    if copy is not None and isinstance(base, Linear):
        own = base.weight.detach().to(copy)
        if own.shape != copy.shape or not torch.allclose(own, copy, rtol=0.01, atol=1e-6):  # bf16
            raise other_base(path, f"its base had other weights in {name}")
    wanted = {"a", "b", "magnitude"} if settings.lora.dora else {"a", "b"}
    if parts.keys() != wanted:
        odd = min(parts.keys() ^ wanted)
        problem = "is missing" if odd in wanted else "exists, but use_dora is not set"
        raise SettingError(f"{path}: {odd} of {name} {problem}")
    rank, given = parts["a"].shape[0] if parts["a"].ndim else 0, settings.lora.rank
    if rank < 1 or (rank != given and not settings.ranks_differ):
        raise SettingError(f"{path}: {name} has rank {rank}, its settings say {given}")
    # Before memory is allocated: a shape with a zero may claim any rank.
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
        raise other_base(path, f"this model has no {name}") from None


def _check_whole(model: Transformer, name: str, parts: dict[str, Tensor], path: Path) -> None:
    module = _module(model, name, path)
    if not isinstance(module, Linear | nn.Embedding | Norm):
        raise other_base(path, f"{name} is trained in full, but here it is quantised or missing")
    _check_shapes(module, name, parts, path)


def _check_shapes(module: nn.Module, name: str, parts: dict[str, Tensor], path: Path) -> None:
    own = dict(module.named_parameters(recurse=False))
    if own.keys() != parts.keys():
        raise other_base(path, f"{min(own.keys() ^ parts.keys())} of {name} is not in both")
    for part, value in parts.items():
        _check_shape(part, name, value, tuple(own[part].shape), path)


def _check_shape(part: str, name: str, value: Tensor, here: tuple[int, ...], path: Path) -> None:
    if (there := tuple(value.shape)) != here:
        raise other_base(path, f"{part} of {name} has the shape {there}, here it is {here}")


@torch.no_grad()
def _put(model: Transformer, whole: Parts, keeps_tied: bool) -> None:
    """Overwrite fully trained modules; PEFT unties a head that was tied to one of them."""
    ends = [whole[name]["weight"] for name in ("embed", "head") if name in whole]
    follows = torch.equal(*ends) if len(ends) == 2 else keeps_tied
    if model.config.tied and ends and not follows:
        model.head = plain(model.embed.weight.detach().clone(), None).requires_grad_(False)
        note_untied(model)
    for name, parts in whole.items():
        module = model.get_submodule(name).requires_grad_(True)
        for part, value in parts.items():
            module.get_parameter(part).copy_(value)
