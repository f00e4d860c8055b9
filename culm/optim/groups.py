"""Which parameters an optimizer treats how."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, cast

from torch import nn

from culm.adapt.lora import adapters_of
from culm.config import SettingError
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
    rate: float,
    weight_decay: float,
    eps: float,
    orthogonal: Collection[nn.Parameter] = (),
) -> list[dict[str, Any]]:
    """Parameters of `module` in groups, each with its `name`, rate, weight decay and eps.

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
            "params": [], "name": place, "lr": rate * by.rate,
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
        for name, parameter in model.named_parameters():
            place = "orthogonal" if parameter in orthogonal else place_of(name, parameter)
            by = Multiples()
            if config.scaling is not None:
                by = config.scaling.multiples(place, config.width, config.layers)
            placed[parameter] = place, by
    for adapter in adapters_of(module).values():
        own = dict.fromkeys(adapter.parameters(recurse=False), ("adapter", Multiples()))
        placed |= own | {adapter.b: ("adapter b", Multiples(rate=adapter.lora_plus_ratio))}
    return placed


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
