"""Tensors under the names and in the layout of another library, and back, as a stream.

A rule names our tensors and theirs; `#` stands for the number of a layer, `*` for that of an
expert, whose tensors are stacked here. A name is that of a module, whose weight and bias keep their
names, or that of a single tensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from culm.config import SettingError

Change = Callable[[list[Tensor]], Sequence[Tensor]]
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


@dataclass(frozen=True)
class TensorRule:
    """ours, theirs: names. read: their tensors -> ours; write: ours -> theirs."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    read: Change = list
    write: Change = list


def renamed(table: dict[str, str]) -> list[TensorRule]:
    """Rules for tensors that differ in name only: ours -> theirs."""
    return [TensorRule((ours,), (theirs,)) for ours, theirs in table.items()]


def read(
    tensors: Iterable[tuple[str, Tensor]], rules: Sequence[TensorRule], experts: int = 0
) -> Iterator[tuple[str, Tensor]]:
    """Their tensors as ours. Tensors without a rule keep their names.

    Raises:
        SettingError: a part of a tensor is missing.
    """
    return _stream(tensors, [(rule.theirs, rule.ours, rule.read) for rule in rules], experts)


def rooted(name: str, root: str, rules: Sequence[TensorRule]) -> str:
    """Their name of a tensor, even if the model was saved without its head and so without its root.

    >>> rooted("h.0.ln_1.weight", "transformer.", rules)
    'transformer.h.0.ln_1.weight'
    """
    whole = f"{root}{name}"
    known = {theirs for rule in rules for theirs in rule.theirs}
    module = _pattern(whole).rpartition(".")[0]
    return whole if {module, _pattern(whole)} & known else name


def write(
    tensors: Iterable[tuple[str, Tensor]], rules: Sequence[TensorRule]
) -> Iterator[tuple[str, Tensor]]:
    """Our tensors as theirs."""
    return _stream(tensors, [(rule.ours, rule.theirs, rule.write) for rule in rules], 0)


@dataclass
class _Waiting:
    """Tensors of one rule so far, by the index of their name; experts by their number."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    change: Change
    arrived: dict[int, dict[int, Tensor]] = field(default_factory=dict)

    def missing(self, experts: int) -> str | None:
        """The first name that is missing."""
        for place, name in enumerate(self.sources):
            wanted = experts if "*" in name else 1
            for number in range(wanted):
                if number not in self.arrived.get(place, {}):
                    return name.replace("*", str(number))
        return None

    def whole(self) -> Iterator[tuple[str, Tensor]]:
        taken = []
        for place, name in enumerate(self.sources):
            parts = [part for _, part in sorted(self.arrived[place].items())]
            taken.append(torch.stack(parts) if "*" in name else parts[0])
        for name, made in zip(self.targets, self.change(taken), strict=True):
            if "*" in name:
                for number, part in enumerate(made):
                    yield name.replace("*", str(number)), part.contiguous()
            else:
                # A copy: a view would keep its whole tensor in memory, and strides matter.
                whole = made.is_contiguous() and made.untyped_storage().nbytes() == made.nbytes
                yield name, made if whole else made.clone(memory_format=torch.contiguous_format)


def _stream(
    tensors: Iterable[tuple[str, Tensor]],
    rules: Sequence[tuple[tuple[str, ...], tuple[str, ...], Change]],
    experts: int,
) -> Iterator[tuple[str, Tensor]]:
    known = {name: (rule, place) for rule in rules for place, name in enumerate(rule[0])}
    waiting: dict[tuple[int, str, str], _Waiting] = {}
    for name, tensor in tensors:
        numbers = _NUMBER.findall(name)
        pattern = _pattern(name)
        module, _, kind = pattern.rpartition(".")
        found, suffix = known.get(pattern), ""
        if found is None:
            found, suffix = known.get(module), f".{kind}"
        if found is None:
            yield name, tensor
            continue
        rule, place = found
        layer = numbers[0] if numbers and "#" in pattern else ""
        key = (id(rule), layer, suffix)
        if key not in waiting:
            named = [tuple(n.replace("#", layer) + suffix for n in side) for side in rule[:2]]
            waiting[key] = _Waiting(named[0], named[1], rule[2])
        expert = int(numbers[1]) if "*" in pattern else 0
        waiting[key].arrived.setdefault(place, {})[expert] = tensor
        if waiting[key].missing(experts) is None:
            yield from waiting.pop(key).whole()
    for rest in waiting.values():
        raise SettingError(f"tensor {rest.missing(experts)} is missing")


def _pattern(name: str) -> str:
    first = _NUMBER.sub("#", name, count=1)
    return _NUMBER.sub("*", first)


class ModuleNames:
    """Both names of the modules that differ in name only."""

    def __init__(self, rules: Sequence[TensorRule]) -> None:
        pairs = {r.ours[0]: r.theirs[0] for r in rules if len(r.ours) == 1 and r.read is list}
        self._theirs = {ours: theirs for ours, theirs in pairs.items() if "*" not in theirs}
        self._ours = {theirs: ours for ours, theirs in self._theirs.items()}

    def theirs(self, name: str) -> str | None:
        """Their name of a module of ours."""
        return _renumbered(name, self._theirs)

    def ours(self, name: str) -> str | None:
        """Our name of a module of theirs."""
        return _renumbered(name, self._ours)


def _renumbered(name: str, table: dict[str, str]) -> str | None:
    found, numbers = table.get(_pattern(name)), _NUMBER.findall(name)
    return found and found.replace("#", numbers[0] if numbers else "#")


# -- changes that several families need ---------------------------------------------------------


def split(*sizes: int) -> Change:
    """One tensor cut along its rows."""
    return lambda tensors: tensors[0].split(sizes)


def join(tensors: list[Tensor]) -> list[Tensor]:
    """Several tensors joined along their rows."""
    return [torch.cat(tensors)]


def transposed(change: Change) -> Change:
    """Matrices (inputs, outputs) as (outputs, inputs), before a change; vectors unchanged."""
    return lambda tensors: change([t.t() if t.dim() == 2 else t for t in tensors])


def then_transposed(change: Change) -> Change:
    """The same after a change."""
    return lambda tensors: [t.t() if t.dim() == 2 else t for t in change(tensors)]


def interleaved(rows: Tensor, heads: int) -> Tensor:
    """Rows of q or k, weight or bias, from our half-split layout: 0, D/2, 1, D/2 + 1, ..."""
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def half_split(rows: Tensor, heads: int) -> Tensor:
    """The inverse of `interleaved`: pairs of neighbours become pairs half a head apart."""
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
