"""Parameter groups: which parameters share an update rule, a rate and weight decay."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, cast

import torch
from torch import nn

from culm.adapt.lora import adapters_of
from culm.config import SettingError
from culm.model.elsewhere import Elsewhere
from culm.model.linear import GroupedLinear, Linear
from culm.model.scaling import WITHIN, Multiples, place_of
from culm.model.trunk import Trunk

Named = tuple[str, nn.Parameter]
Placed = dict[nn.Parameter, tuple[str, Multiples]]


def trainable(module: nn.Module) -> list[Named]:
    """Parameters that learn, in a fixed order, shared ones once."""
    return [(name, p) for name, p in module.named_parameters() if p.requires_grad]


def groups_of(
    module: nn.Module,
    named: Iterable[Named],
    rule: object,
    rate: float,
    weight_decay: float,
    eps: float,
    orthogonal: Collection[nn.Parameter] = (),
) -> list[dict[str, Any]]:
    """Parameters of `module` in groups, each with its `name`, rule, rate, weight decay and eps.

    Groups that take `rate` as it is come first: the rate of the first one is logged.

    Only matrices decay; norms, biases (those of experts too) and other vectors are left alone. The
    model's scaling rule multiplies what its places have (`culm.model.scaling`); those of adapters
    are left as they are, but for B, which has a multiple of the rate if the adapter says so (LoRA+,
    arXiv 2402.12354).
    orthogonal: matrices that take steps of Muon.

    Raises:
        SettingError: the model has a scaling rule, which does not say how a parameter scales.
    """
    placed = _placed(module, orthogonal)
    groups: dict[tuple[str, Multiples, bool], dict[str, Any]] = {}
    for name, parameter in named:
        if parameter not in placed:
            raise SettingError(
                f"model.scaling: it does not say how the rate of {name} scales; train this "
                "objective from a model without it"
            )
        place, by = placed[parameter]
        decays = parameter.ndim >= 2 and not name.endswith("bias")
        group = {
            "params": [], "name": place, "rule": rule, "lr": rate * by.rate,
            "weight_decay": weight_decay * by.decay if decays else 0.0, "eps": eps * by.eps,
        }  # fmt: skip
        groups.setdefault((place, by, decays), group)["params"].append(parameter)
    base_first = sorted(groups, key=lambda group: group[1].rate != 1.0)
    return [groups[group] for group in base_first]


def _placed(module: nn.Module, orthogonal: Collection[nn.Parameter]) -> Placed:
    """The group of every parameter, and what the rule of its model multiplies there."""
    models = [part for part in module.modules() if isinstance(part, Trunk)]
    scaled = any(model.config.scaling for model in models)
    placed: Placed = {} if scaled else {p: ("objective", Multiples()) for p in module.parameters()}
    for model in models:
        config = model.config
        inner = _inner(model)
        for name, parameter in model.named_parameters():
            if parameter in inner:  # its own trunk says where
                continue
            if config.scaling is None and name.partition(".")[0] in model.other_ends:
                placed[parameter] = "objective", Multiples()
                continue
            place = "orthogonal" if parameter in orthogonal else place_of(name, parameter)
            by = Multiples()
            if config.scaling is not None:
                by = config.scaling.multiples(place, config.width, config.layers)
            placed[parameter] = place, by
    for adapter in adapters_of(module).values():
        own = dict.fromkeys(adapter.parameters(recurse=False), ("adapter", Multiples()))
        placed |= own | {adapter.b: ("adapter b", Multiples(rate=adapter.lora_plus_ratio))}
    return placed


def _inner(model: Trunk) -> set[nn.Parameter]:
    """The parameters of trunks inside of this one."""
    others = (part for part in model.modules() if isinstance(part, Trunk) and part is not model)
    return {parameter for other in others for parameter in other.parameters()}


def rate_factors(
    module: nn.Module, multiples: Mapping[str, float], layer_decay: float
) -> dict[nn.Parameter, float]:
    """What the rate of each parameter is multiplied by; those that are not in it take it as it is.

    multiples: by regular expressions, of which the first that is found in a name counts.
    layer_decay: of each block by the next one's; embeddings come below the first block.

    Raises:
        SettingError: a pattern is found in no name, or an earlier one takes all its parameters.
    """
    factors: dict[nn.Parameter, float] = {}
    for trunk in (part for part in module.modules() if isinstance(part, Trunk)):
        depth = len(trunk.blocks)
        for name, parameter in trunk.named_parameters():
            root, number, *_ = [*name.split("."), ""]
            below = depth - int(number) if root == "blocks" else depth + 1
            if root in (*WITHIN, "embed", "positions") and root != "mtp":
                factors[parameter] = layer_decay**below
    unused = dict.fromkeys(multiples)
    for name, parameter in trainable(module):
        pattern = next((pattern for pattern in multiples if re.search(pattern, name)), None)
        if pattern is not None:
            factors[parameter] = factors.get(parameter, 1.0) * multiples[pattern]
            unused.pop(pattern, None)
    elsewhere = [
        f"{name}.{own}"
        for name, part in module.named_modules()
        if isinstance(part, Elsewhere)
        for own in part.learned
    ]
    for name in elsewhere:
        unused.pop(next((pattern for pattern in multiples if re.search(pattern, name)), ""), None)
    if unused:
        raise SettingError(
            f"train.optimizer.multiples: {next(iter(unused))!r} is found in the name of no "
            "parameter that learns, or earlier patterns take all of them"
        )
    return factors


def divided(group: dict[str, Any], factors: Mapping[nn.Parameter, float]) -> list[dict[str, Any]]:
    """A group in parts of one precision that each take one multiple of its rate, which is in their
    name; the rate itself comes first.
    """
    parts: dict[tuple[float, torch.dtype], list[nn.Parameter]] = {}
    for parameter in group["params"]:
        key = factors.get(parameter, 1.0), parameter.dtype
        parts.setdefault(key, []).append(parameter)
    ordered = sorted(parts, key=lambda key: key[0] != 1.0)
    found = []
    for factor, dtype in ordered:
        name = group["name"] if factor == 1.0 else f"{group['name']} x{factor:.3g}"
        params = parts[factor, dtype]
        found.append(group | {"name": name, "params": params, "lr": group["lr"] * factor})
    return found


def hidden_matrices(module: nn.Module) -> set[nn.Parameter]:
    """Weights of the linear layers and experts inside blocks: not embeddings, not output heads."""
    tables = {m.weight for m in module.modules() if isinstance(m, nn.Embedding)}
    found: set[nn.Parameter] = set()
    for name, part in module.named_modules():
        inside = any(f".{root}." in f".{name}." for root in WITHIN)
        linear = isinstance(part, Linear | GroupedLinear)
        if linear and inside and part.weight not in tables:
            found.add(cast(nn.Parameter, part.weight))
    return found
