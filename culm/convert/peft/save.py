"""Write adapter folders in the format of PEFT, for the names of the model's Hugging Face family.

adapter_config.json         rank, alpha, which layers, and the name of the base model
adapter_model.safetensors   A and B under the layers' Hugging Face names, and fully trained modules

The tensors also carry the fingerprint of the base model, which only Culm reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from culm.adapt.lora import LoRA, LoRALinear, adapters_of
from culm.adapt.quantize.linear import QuantizedLinear
from culm.atomic import atomic
from culm.config import SettingError
from culm.convert.family import NoFamilyError
from culm.convert.hf import family_at, module_names
from culm.convert.peft.folder import BASE, WEIGHTS
from culm.convert.peft.fused import WrittenAdapter, joined
from culm.convert.peft.settings import NAME, written
from culm.convert.peft.tensors import PARTS, PREFIX
from culm.convert.rules import ModuleNames
from culm.convert.weights import fingerprint
from culm.dtype import cast
from culm.files import refuse_nonempty, write_json
from culm.log import say
from culm.model.linear import Linear
from culm.model.transformer import Transformer
from culm.safetensors import write_safetensors


def save(model: Transformer, settings: LoRA, folder: str | Path, base: str | None) -> None:
    """Write the adapters of a model, and the modules that were trained in full.

    settings: of the adapters. base: path or hub id of the base model, if it has one.

    Raises:
        SettingError: there are none, a layer has no name in its family, or the folder contains
            something else.
        OSError: the disk is full or not writable.
    """
    folder = Path(folder)
    refuse_nonempty(folder, NAME)
    if not adapters_of(model):
        raise SettingError("model: it has no adapters")
    known = module_names(model.config, "" if base is None else family_at(base))
    if model.config.scaling is not None:
        say(
            f"{folder}: other libraries do not apply the scaling rule of the base to an adapter: "
            "merge it before exporting the model."
        )
    adapters = _adapters(model, known)
    if any(known.named_as_experts(name) for name in adapters):
        say(
            f"{folder}: PEFT takes adapters of feed-forward layers for those of the experts next "
            "to them: merge it before exporting the model."
        )
    whole = [name for name, module in model.named_modules() if _is_whole(module)]
    trained = {_theirs(name, known): name for name in whole}
    parts = {ours for theirs in trained for ours in known.ours(theirs)}
    saved = [_last(n) if ours in ("embed", "head") else n for n, ours in trained.items()]
    tensors = {
        name: cast(tensor, tensor.dtype, name).cpu().clone()
        for name, tensor in (*_adapter_tensors(adapters), *_whole_tensors(model, trained, known))
    }
    about = written(settings, _targets(model, adapters, known), saved, base)
    about |= _patterns(settings, adapters)
    with atomic(folder) as fresh:
        fresh.mkdir()
        write_safetensors(fresh / WEIGHTS, tensors, {BASE: fingerprint(model, parts)})
        write_json(fresh / NAME, about)


def _is_whole(module: nn.Module) -> bool:
    """Whether it is trained in full."""
    own = list(module.parameters(recurse=False))
    return bool(own) and not isinstance(module, LoRALinear) and all(p.requires_grad for p in own)


def _adapters(model: Transformer, known: ModuleNames) -> dict[str, WrittenAdapter]:
    """Each adapter by the name that its layer has there."""
    found = {}
    for theirs in dict.fromkeys(_theirs(name, known) for name in adapters_of(model)):
        rule = known.rule(theirs)
        assert rule is not None
        found[theirs] = joined([model.get_submodule(name) for name in known.ours(theirs)], rule)
    return found


def _adapter_tensors(adapters: Mapping[str, WrittenAdapter]) -> Iterator[tuple[str, Tensor]]:
    for name, adapter in adapters.items():
        for theirs, ours in PARTS.items():
            if ours in adapter.tensors:
                yield f"{PREFIX}{name}.{theirs}", adapter.tensors[ours]


def _whole_tensors(
    model: Transformer, trained: Iterable[str], known: ModuleNames
) -> Iterator[tuple[str, Tensor]]:
    """Weights of fully trained modules; a tied head is written too, since PEFT unties them.

    Raises:
        SettingError: a module there is trained in full in one part, and adapted in another.
    """
    for name in sorted(trained):
        rule = known.rule(name)
        assert rule is not None
        modules = {ours: model.get_submodule(ours) for ours in known.ours(name)}
        odd = (ours for ours, m in modules.items() if isinstance(m, LoRALinear | QuantizedLinear))
        if (adapted := next(odd, None)) is not None:
            raise NoFamilyError(
                f"model: {adapted} is a part of {name} in its family, of which another part is "
                "trained in full; train all of its parts in full, or none"
            )
        for part, _ in next(iter(modules.values())).named_parameters(recurse=False):
            tensors = [module.get_parameter(part).detach() for module in modules.values()]
            yield f"{PREFIX}{name}.{part}", rule.writing(tensors)[0].contiguous()


def _theirs(name: str, known: ModuleNames) -> str:
    found = known.theirs(name)
    if found is None:
        raise NoFamilyError(
            f"model: {name} has no name in its family by which PEFT finds it; merge the adapter, "
            "and export the model"
        )
    return found


def _last(theirs: str) -> str:
    return theirs.rpartition(".")[2]


def _targets(
    model: Transformer, adapters: Mapping[str, WrittenAdapter], known: ModuleNames
) -> set[str]:
    """`q_proj` if all layers of that name are adapted, else full names of single layers."""
    kinds = (LoRALinear, Linear, QuantizedLinear)
    layers = {known.theirs(n) for n, m in model.named_modules() if isinstance(m, kinds)}
    partly = {_last(name) for name in layers - adapters.keys() if name is not None}
    return {name if _last(name) in partly else _last(name) for name in adapters}


def _patterns(settings: LoRA, adapters: Mapping[str, WrittenAdapter]) -> dict[str, dict[str, Any]]:
    """Ranks and alphas of the layers where they are not those of the settings, by a pattern of
    names: the last part where all layers of that name have the same."""
    kinds: dict[str, set[tuple[int, float]]] = {}
    for name, adapter in adapters.items():
        kinds.setdefault(_last(name), set()).add((adapter.rank, adapter.scale))
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for name, adapter in adapters.items():
        pattern = _last(name) if len(kinds[_last(name)]) == 1 else re.escape(name)
        alpha = adapter.scale * (adapter.rank**0.5 if settings.rslora else adapter.rank)
        if adapter.rank != settings.rank:
            ranks[pattern] = adapter.rank
        if abs(alpha - settings.alpha) > 1e-9 * alpha:
            alphas[pattern] = alpha
    return {"rank_pattern": ranks, "alpha_pattern": alphas}
