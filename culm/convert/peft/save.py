"""Write adapter folders in the format of PEFT, for the names of the model's Hugging Face family.

adapter_config.json         rank, alpha, which layers, and the name of the base model
adapter_model.safetensors   A and B under the layers' Hugging Face names, and fully trained modules

The tensors also carry the fingerprint of the base model, which only Culm reads.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from torch import Tensor, nn

from culm.adapt.lora import LoRA, LoRALinear, adapters_of
from culm.adapt.quantize.linear import QuantizedLinear
from culm.config import SettingError
from culm.convert.family import NoFamilyError
from culm.convert.hf import family_at, module_names
from culm.convert.peft.folder import BASE, WEIGHTS
from culm.convert.peft.settings import NAME, written
from culm.convert.peft.tensors import PARTS, PREFIX
from culm.convert.rules import ModuleNames
from culm.convert.weights import fingerprint
from culm.files import atomic, refuse_nonempty, write_json
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
    whole = {name for name, module in model.named_modules() if _is_whole(module)}
    tensors = {name: tensor.cpu().clone() for name, tensor in _tensors(model, whole, known)}
    names = [
        _last(name, known) if name in ("embed", "head") else _theirs(name, known) for name in whole
    ]
    with atomic(folder) as fresh:
        fresh.mkdir()
        write_safetensors(fresh / WEIGHTS, tensors, {BASE: fingerprint(model, whole)})
        write_json(fresh / NAME, written(settings, _targets(model, known), names, base))


def _is_whole(module: nn.Module) -> bool:
    """Whether it is trained in full."""
    own = list(module.parameters(recurse=False))
    return bool(own) and not isinstance(module, LoRALinear) and all(p.requires_grad for p in own)


def _tensors(
    model: Transformer, whole: Collection[str], known: ModuleNames
) -> Iterator[tuple[str, Tensor]]:
    for name, adapter in adapters_of(model).items():
        own = dict(adapter.named_parameters(recurse=False))
        for theirs, ours in PARTS.items():
            if ours in own:
                yield f"{PREFIX}{_theirs(name, known)}.{theirs}", own[ours].detach()
    for name in whole:  # a tied head is written next to its embedding, since PEFT unties them
        for part, tensor in model.get_submodule(name).named_parameters(recurse=False):
            turned = tensor.dim() == 2 and known.is_transposed(name)
            stored = tensor.t().contiguous() if turned else tensor
            yield f"{PREFIX}{_theirs(name, known)}.{part}", stored.detach()


def _theirs(name: str, known: ModuleNames) -> str:
    found = known.theirs(name)
    if found is None:
        raise NoFamilyError(f"model: {name} has no name in its family by which PEFT finds it")
    return found


def _last(name: str, known: ModuleNames) -> str:
    return _theirs(name, known).rpartition(".")[2]


def _targets(model: Transformer, known: ModuleNames) -> set[str]:
    """`q_proj` if all layers of that name are adapted, else full names of single layers."""
    kinds = (LoRALinear, Linear, QuantizedLinear)
    layers = {n for n, m in model.named_modules() if isinstance(m, kinds)}
    adapted = adapters_of(model).keys()
    rest = [name for name in layers - adapted if not name.endswith(".base")]
    partly = {_last(name, known) for name in rest if known.theirs(name)}
    return {
        _theirs(name, known) if _last(name, known) in partly else _last(name, known)
        for name in adapted
    }
