"""The tensors of an adapter folder under our names.

A layer there may be several here: the q, k and v of Phi-3 are one `qkv_proj`. An adapter of it is
cut along the rows of B; A is the same for all.

    W = [Wq; Wk; Wv]    W + B A = [Wq + Bq A; Wk + Bk A; Wv + Bv A]    B = [Bq; Bk; Bv]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from culm.config import SettingError
from culm.convert.hf import all_module_names
from culm.convert.rules import ModuleNames
from culm.dtype import cast, name_of
from culm.model.transformer import TransformerConfig
from culm.safetensors import read_safetensors

PREFIX = "base_model.model."
PARTS = {"lora_A.weight": "a", "lora_B.weight": "b", "lora_magnitude_vector": "magnitude"}
COPY = {"base_layer.weight": "base"}  # for an adapted head PEFT also writes the base's weights

Parts = dict[str, dict[str, Tensor]]  # tensors of modules, by our name and the parameter's


class _Key(NamedTuple):
    """A tensor's name there: module, and our name of the parameter; adapted: or fully trained."""

    module: str
    part: str
    adapted: bool


@dataclass
class AdapterTensors:
    """layers: of adapted layers; whole: of fully trained modules. theirs: the name there of each
    adapted layer."""

    layers: Parts = field(default_factory=dict)
    whole: Parts = field(default_factory=dict)
    theirs: dict[str, str] = field(default_factory=dict)


def other_base(path: Path, reason: str) -> SettingError:
    """An error about an adapter that does not fit the model."""
    return SettingError(f"{path}: an adapter for another base: {reason}; load it with its own base")


def read_tensors(path: Path, config: TransformerConfig) -> AdapterTensors:
    """The tensors of an adapter file for a model with these settings.

    Raises:
        SettingError: one is not finite, of a kind of adapter that is not read, or not in the model.
    """
    held = {_key(name, path): tensor for name, tensor in _finite(path)}
    names = _names({key.module for key in held}, config, path)
    found = AdapterTensors()
    for key, tensor in held.items():
        place = found.layers if key.adapted else found.whole
        ours = names.ours(key.module)
        for name, part in zip(ours, _cut(key, tensor, names, path), strict=True):
            place.setdefault(name, {})[key.part] = part
        if key.adapted:
            found.theirs |= dict.fromkeys(ours, key.module)
    if not found.layers:
        raise SettingError(f"{path}: contains no adapter of a layer")
    return found


def _finite(path: Path) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in read_safetensors(path):
        if not tensor.is_floating_point():
            raise SettingError(
                f"{path}: {name} holds {name_of(tensor.dtype)}, and an adapter has numbers with a "
                "fraction; copy the folder again"
            )
        yield name.removeprefix(PREFIX), cast(tensor, tensor.dtype, f"{path}: {name}")


def _key(name: str, path: Path) -> _Key:
    known: Mapping[str, str] = PARTS | COPY
    found = next((part for part in known if name.endswith(f".{part}")), None)
    if found is not None:
        return _Key(name.removesuffix(f".{found}"), known[found], True)
    if ".lora_" in name:
        raise SettingError(f"{path}: {name}: this kind of adapter is not read here")
    module, _, part = name.rpartition(".")
    return _Key(module, part, False)


def _names(modules: set[str], config: TransformerConfig, path: Path) -> ModuleNames:
    """The names of the family that has all these modules."""
    families = list(all_module_names(config))
    for names in families:
        if all(names.ours(module) for module in modules):
            return names
    nearest = max(families, key=lambda names: sum(bool(names.ours(m)) for m in modules))
    unknown = min(module for module in modules if not nearest.ours(module))
    if any(names.has(unknown) for names in families):
        raise SettingError(
            f"{path}: adapters of {unknown} are not read here; merge it into its base with PEFT "
            "(merge_and_unload), and load the result"
        )
    raise other_base(path, f"{unknown} is not in a model of this family")


def _cut(key: _Key, tensor: Tensor, names: ModuleNames, path: Path) -> list[Tensor]:
    """The part of a tensor for each of our layers."""
    rule = names.rule(key.module)
    assert rule is not None
    if key.part == "a":
        return [tensor] * len(rule.ours)
    try:
        # B and the magnitudes have the rows of our layers, whole weights those of the file.
        stored = key.part in ("b", "magnitude")
        return list((rule.read if stored else rule.reading)([tensor]))
    except (RuntimeError, ValueError):
        shape = tuple(tensor.shape)
        raise other_base(path, f"{key.part} of {key.module} has the shape {shape}") from None
