"""Statistics of the inputs of a model's layers on text, measured block by block.

    tokens -> embedding -> block 0 -> block 1 -> ...
                            |
                            +  the inputs of its layers are measured, it is quantised, and the
                               quantised block computes the input of the next one

Memory holds the hidden states between two blocks and the statistics of one block, all fp32.
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

ROWS = 8  # per forward of a block


@dataclass(frozen=True)
class Inputs:
    """Statistics of the inputs x of a layer.

    gram: (inputs, inputs) fp32, the mean of x x^T. magnitude, maximum: (inputs,), mean and maximum
    of |x|.
    """

    gram: Tensor
    magnitude: Tensor
    maximum: Tensor

    def error(self, change: Tensor) -> float:
        """Mean squared change of the outputs, summed, for a change of weights (outputs, inputs)."""
        return float(((change @ self.gram) * change).sum())

    def divided(self, scale: Tensor) -> Inputs:
        """Statistics of x / scale; scale: (inputs,)."""
        gram = self.gram / torch.outer(scale, scale)
        return Inputs(gram, self.magnitude / scale, self.maximum / scale)


@dataclass(frozen=True)
class Trace:
    """The first argument and the result of every module of a block, in the order of the calls."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]

    def stages(self, names: Iterable[str]) -> list[list[str]]:
        """These modules in the order of their calls, grouped by common input."""
        wanted, found = set(names), list[list[str]]()
        for name in (name for name in self.inputs if name in wanted):
            alike = (stage for stage in found if self.inputs[stage[0]] is self.inputs[name])
            stage = next(alike, None)
            if stage is None:
                found.append([name])
            else:
                stage.append(name)
        return found


class Calibration:
    """Iterates over the blocks; later blocks read the outputs of changed earlier ones.

    tokens: (N, T), one document per row.
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
        """The output of a block for the first rows."""
        return block(*self._entries[0])[0]

    @torch.no_grad()
    def trace(self, block: nn.Module) -> Trace:
        """Inputs and outputs of all modules of a block, on the first rows."""
        inputs: dict[str, Tensor] = {}
        outputs: dict[str, Tensor] = {}
        with ExitStack() as hooks:
            for name, module in block.named_modules():
                before, after = _recorders(name, inputs, outputs)
                hooks.callback(module.register_forward_pre_hook(before).remove)
                hooks.callback(module.register_forward_hook(after).remove)
            self.first(block)
        return Trace(inputs, outputs)

    @torch.no_grad()
    def measure(self, block: nn.Module, names: Iterable[str]) -> dict[str, Inputs]:
        """Statistics of the inputs of these layers of a block, over all rows.

        Raises:
            SettingError: an input is NaN or infinite.
        """
        sums = {name: _Sums() for name in names}
        self._watch(block, {name: inputs.add for name, inputs in sums.items()})
        return {name: inputs.means(name) for name, inputs in sums.items()}

    @torch.no_grad()
    def measure_experts(self, block: nn.Module, name: str) -> list[tuple[Tensor, int]]:
        """The sum of x x^T, (inputs, inputs) fp32, and the rows, of each expert of a layer.

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
        """Run a block on all rows; watchers: forward pre-hooks, by names of layers."""
        with ExitStack() as hooks:
            for name, watcher in watchers.items():
                layer = block.get_submodule(name)
                hooks.callback(layer.register_forward_pre_hook(watcher).remove)
            for entry in self._entries:
                block(*entry)


class _Grams:
    """Gram matrices of the rows of each expert; `add` is a forward pre-hook."""

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
    """Sums for `Inputs`; `add` is a forward pre-hook."""

    def __init__(self) -> None:
        self.gram: Tensor | float = 0.0
        self.magnitude: Tensor | float = 0.0
        self.maximum: Tensor | None = None
        self.count = 0

    def add(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0].flatten(0, -2).float()
        self.gram = x.t() @ x + self.gram
        self.magnitude = x.abs().sum(0) + self.magnitude
        maximum = x.abs().amax(0)
        before = maximum if self.maximum is None else self.maximum
        self.maximum = torch.maximum(maximum, before)
        self.count += len(x)

    def means(self, name: str) -> Inputs:
        assert isinstance(self.gram, Tensor)
        assert isinstance(self.magnitude, Tensor)
        assert self.maximum is not None
        _check(self.gram, name)
        return Inputs(self.gram / self.count, self.magnitude / self.count, self.maximum)


def _check(gram: Tensor, name: str) -> None:
    if not gram.isfinite().all():
        raise SettingError(f"calibrate: the input of {name} is NaN or infinite on this text")


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


def _recorders(name: str, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> tuple[Any, Any]:
    """Hooks before and after a module."""

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            inputs[name] = args[0]

    def after(module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        if isinstance(result, Tensor):
            outputs[name] = result

    return before, after
