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
    """ours, theirs: names. read: their tensors -> ours; write: ours -> theirs.

    transposed: their matrices are (inputs, outputs); `read` gets and `write` gives the others.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    read: Change = list
    write: Change = list
    transposed: bool = False

    def reading(self, tensors: list[Tensor]) -> Sequence[Tensor]:
        """Their tensors of a file as ours."""
        return self.read(_transposed(tensors) if self.transposed else tensors)

    def writing(self, tensors: list[Tensor]) -> Sequence[Tensor]:
        """Our tensors as theirs in a file."""
        made = self.write(tensors)
        return _transposed(made) if self.transposed else made


def _transposed(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Matrices the other way round; vectors unchanged."""
    return [tensor.t() if tensor.dim() == 2 else tensor for tensor in tensors]


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
    return _stream(tensors, [(rule.theirs, rule.ours, rule.reading) for rule in rules], experts)


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
    return _stream(tensors, [(rule.ours, rule.theirs, rule.writing) for rule in rules], 0)


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
    """Both names of the modules of a family."""

    def __init__(self, rules: Sequence[TensorRule]) -> None:
        self._patterns = {theirs for rule in rules for theirs in rule.theirs}
        single = [rule for rule in rules if len(rule.theirs) == 1]
        self._rules = {rule.theirs[0]: rule for rule in single if not _stacked(rule)}
        stacked = [theirs for rule in rules if _stacked(rule) for theirs in rule.theirs]
        self._of_experts = {theirs.rpartition(".")[2] for theirs in stacked}
        self._by_ours = {ours: rule for rule in self._rules.values() for ours in rule.ours}

    def theirs(self, name: str) -> str | None:
        """Their name of a module of ours, or of the fused one that it is a part of."""
        rule = self._by_ours.get(_pattern(name))
        return None if rule is None else _renumbered(rule.theirs[0], name)

    def rule(self, name: str) -> TensorRule | None:
        """The rule of one of their modules; it gives several of ours for a fused one."""
        return self._rules.get(_pattern(name))

    def ours(self, name: str) -> list[str]:
        """Our names of one of their modules; none if it is not known."""
        rule = self.rule(name)
        return [_renumbered(ours, name) for ours in rule.ours] if rule else []

    def named_as_experts(self, name: str) -> bool:
        """Whether the last part of one of their names is also that of a layer of experts."""
        return name.rpartition(".")[2] in self._of_experts

    def has(self, name: str) -> bool:
        """Whether a model of this family has such a module, even if it has no place here."""
        pattern = _pattern(name)
        return any(known == pattern or known.startswith(f"{pattern}.") for known in self._patterns)


def _stacked(rule: TensorRule) -> bool:
    """Whether it is about experts, which are one tensor here."""
    return any("experts" in name.split(".") for name in (*rule.ours, *rule.theirs))


def _renumbered(pattern: str, name: str) -> str:
    """A pattern with the number of the layer of a name."""
    numbers = _NUMBER.findall(name)
    return pattern.replace("#", numbers[0] if numbers else "#")


# -- changes that several families need ---------------------------------------------------------


def split(*sizes: int) -> Change:
    """One tensor cut along its rows."""
    return lambda tensors: tensors[0].split(sizes)


def join(tensors: list[Tensor]) -> list[Tensor]:
    """Several tensors joined along their rows."""
    return [torch.cat(tensors)]


def interleaved(rows: Tensor, heads: int) -> Tensor:
    """Rows of q or k, weight or bias, from our half-split layout: 0, D/2, 1, D/2 + 1, ..."""
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def half_split(rows: Tensor, heads: int) -> Tensor:
    """The inverse of `interleaved`: pairs of neighbours become pairs half a head apart."""
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
