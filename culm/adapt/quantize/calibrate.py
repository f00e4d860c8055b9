"""What the inputs of a model's layers are like on text, measured block by block.

    tokens -> embedding -> block 0 -> block 1 -> ...
                            |
                            +  the inputs of its layers are measured, it is quantised, and the
                               rows go on through what it has become

In memory are the hidden states between two blocks and the statistics of one block, all fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from culm.config import SettingError
from culm.log import progress
from culm.model.linear import GroupedLinear
from culm.model.transformer import Transformer
from culm.model.trunk import run_block

ROWS = 8  # that go through a block at once


@dataclass(frozen=True)
class Inputs:
    """Statistics of the inputs x of a layer.

    gram: (inputs, inputs) fp32, the mean of x x^T. magnitude, greatest: (inputs,) of |x|.
    """

    gram: Tensor
    magnitude: Tensor
    greatest: Tensor

    def error(self, change: Tensor) -> float:
        """Mean squared change of the outputs, summed, when weights change by (outputs, inputs)."""
        return float(((change @ self.gram) * change).sum())

    def divided(self, scale: Tensor) -> Inputs:
        """Statistics of x / scale; scale: (inputs,)."""
        gram = self.gram / torch.outer(scale, scale)
        return Inputs(gram, self.magnitude / scale, self.greatest / scale)


@dataclass(frozen=True)
class Trace:
    """The first argument of every module of a block that was called, in order, and its result."""

    taken: dict[str, Tensor]
    given: dict[str, Tensor]

    def stages(self, names: Iterable[str]) -> list[list[str]]:
        """These modules in the order of their calls, those that read the same input together."""
        wanted, found = set(names), list[list[str]]()
        for name in (name for name in self.taken if name in wanted):
            alike = (stage for stage in found if self.taken[stage[0]] is self.taken[name])
            stage = next(alike, None)
            if stage is None:
                found.append([name])
            else:
                stage.append(name)
        return found


class Calibration:
    """Iterating gives the blocks; what is done to one is seen by those behind it.

    tokens: (N, T) rows that are one document each.
    """

    def __init__(self, model: Transformer, tokens: Tensor) -> None:
        self.blocks = model.blocks
        self._entries = _entries(model, tokens.to(model.device))

    @torch.no_grad()
    def __iter__(self) -> Iterator[tuple[str, nn.Module]]:
        with progress("calibrating", len(self.blocks), "blocks") as bar:
            for index, block in enumerate(self.blocks):
                yield f"blocks.{index}", block
                for number, (x, context, cache) in enumerate(self._entries):
                    x, context = run_block(block, x, context, cache)
                    self._entries[number] = (x, context, cache)
                bar.advance(1)

    @torch.no_grad()
    def first(self, block: nn.Module) -> Tensor:
        """What a block makes of the first rows."""
        return block(*self._entries[0])[0]

    @torch.no_grad()
    def trace(self, block: nn.Module) -> Trace:
        """Which modules of a block read what, found by running it on the first rows."""
        taken: dict[str, Tensor] = {}
        given: dict[str, Tensor] = {}
        with ExitStack() as hooks:
            for name, module in block.named_modules():
                before, after = _noting(name, taken, given)
                hooks.callback(module.register_forward_pre_hook(before).remove)
                hooks.callback(module.register_forward_hook(after).remove)
            self.first(block)
        return Trace(taken, given)

    @torch.no_grad()
    def measure(self, block: nn.Module, names: Iterable[str]) -> dict[str, Inputs]:
        """Statistics of what these layers of a block read, over all rows.

        Raises:
            SettingError: an input is NaN or infinite.
        """
        sums = {name: _Sums() for name in names}
        self._watch(block, {name: inputs.add for name, inputs in sums.items()})
        return {name: inputs.means(name) for name, inputs in sums.items()}

    @torch.no_grad()
    def measure_experts(self, block: nn.Module, name: str) -> list[tuple[Tensor, int]]:
        """For each expert of a layer the sum of x x^T, (inputs, inputs) fp32, and its rows.

        Raises:
            SettingError: an input is NaN or infinite.
        """
        layer = block.get_submodule(name)
        assert isinstance(layer, GroupedLinear)
        found = _Grams(layer)
        self._watch(block, {name: found.add})
        _check(found.grams, name)
        return list(zip(found.grams, found.rows, strict=True))

    def _watch(self, block: nn.Module, watchers: Mapping[str, Callable[..., None]]) -> None:
        """Send all rows through a block; watchers: forward pre-hooks, by the names of layers."""
        with ExitStack() as hooks:
            for name, watcher in watchers.items():
                layer = block.get_submodule(name)
                hooks.callback(layer.register_forward_pre_hook(watcher).remove)
            for entry in self._entries:
                block(*entry)


class _Grams:
    """Gram matrices of the rows of each expert; a forward pre-hook."""

    def __init__(self, layer: GroupedLinear) -> None:
        size = layer.in_features
        self.grams = layer.weight.new_zeros(layer.experts, size, size, dtype=torch.float32)
        self.rows = [0] * layer.experts

    def add(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        start, (x, ends) = 0, args
        for number, end in enumerate(ends.tolist()):
            part = x[start:end].float()
            self.grams[number].addmm_(part.t(), part)
            self.rows[number] += len(part)
            start = end


class _Sums:
    """Grows row by row; a forward pre-hook."""

    def __init__(self) -> None:
        self.gram: Tensor | float = 0.0
        self.magnitude: Tensor | float = 0.0
        self.greatest: Tensor | None = None
        self.count = 0

    def add(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0].flatten(0, -2).float()
        self.gram = x.t() @ x + self.gram
        self.magnitude = x.abs().sum(0) + self.magnitude
        greatest = x.abs().amax(0)
        before = greatest if self.greatest is None else self.greatest
        self.greatest = torch.maximum(greatest, before)
        self.count += len(x)

    def means(self, name: str) -> Inputs:
        assert isinstance(self.gram, Tensor)
        assert isinstance(self.magnitude, Tensor)
        assert self.greatest is not None
        _check(self.gram, name)
        return Inputs(self.gram / self.count, self.magnitude / self.count, self.greatest)


def _check(gram: Tensor, name: str) -> None:
    if not gram.isfinite().all():
        raise SettingError(f"calibrate: what {name} reads is NaN or infinite on this text")


class _Entered(Exception):
    """The rows have come to the first block."""


def _entries(model: Transformer, tokens: Tensor) -> list[tuple[Any, ...]]:
    """The arguments of the first block, for each batch of rows."""
    caught: list[tuple[Any, ...]] = []

    def catch(module: nn.Module, args: tuple[Any, ...]) -> None:
        caught.append(args)
        raise _Entered

    hook = model.blocks[0].register_forward_pre_hook(catch)
    try:
        for rows in tokens.split(ROWS):
            with suppress(_Entered), torch.no_grad():
                model.hidden(rows)
    finally:
        hook.remove()
    return caught


def _noting(name: str, taken: dict[str, Tensor], given: dict[str, Tensor]) -> tuple[Any, Any]:
    """Hooks before and after a module."""

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            taken[name] = args[0]

    def after(module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        if isinstance(result, Tensor):
            given[name] = result

    return before, after
