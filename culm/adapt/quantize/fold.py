"""Scales of channels that move from the input of a layer into what gives that input.

    x W^T = (x / s) (W s)^T

The norm or layer that gives x is divided by s, and what reads it is multiplied: no output changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from culm.adapt.quantize.calibrate import Calibration, Inputs, Trace
from culm.adapt.quantize.method import plain_linear
from culm.config import SettingError
from culm.model.norm import Norm

TOLERANCE = 1e-3  # of a block's output, relative to its greatest


ScaleOf = Callable[[list[str], Inputs], Tensor]


@runtime_checkable
class Foldable(Protocol):
    """A part of a block that tells through which of its layers a scale of channels can move.

    scale_folds: from a layer of the part, or `x` (its input), to the layers that alone read it.
    """

    scale_folds: Mapping[str, tuple[str, ...]]


@torch.no_grad()
def fold_all(
    calibration: Calibration, block: nn.Module, inputs: dict[str, Inputs], kind: str, scale: ScaleOf
) -> dict[str, Inputs]:
    """Scale the channels of a block wherever that folds; what its layers read afterwards.

    inputs: of the layers that are to be quantised, by name. scale: of layers that read the same,
    and what they read. kind: of the method, for messages.

    Raises:
        SettingError: the block gives something else afterwards.
    """
    before = calibration.first(block)
    for source, readers in foldings(block, calibration.trace(block)):
        targets = [name for name in readers if name in inputs]
        if targets:
            factor = scale(targets, inputs[targets[0]])
            fold(block, source, readers, factor)
            inputs = inputs | {name: inputs[name].divided(factor) for name in targets}
    difference = (calibration.first(block) - before).abs().max()
    if not difference <= TOLERANCE * before.abs().max():
        raise SettingError(f"method: {kind} does not fit a part of this model; take another one")
    return inputs


def foldings(block: nn.Module, trace: Trace) -> Iterator[tuple[str, list[str]]]:
    """Where a scale can move: a norm or layer, and all the layers that read what it gives."""
    for name, part in block.named_modules():
        if not isinstance(part, Foldable) or name not in trace.taken:
            continue
        for giver, readers in part.scale_folds.items():
            to = [f"{name}.{reader}" for reader in readers]
            source = _norm_before(name, to, block, trace) if giver == "x" else f"{name}.{giver}"
            if (
                source is not None
                and _channels(block, source) == block.get_submodule(to[0]).in_features
            ):
                yield source, to


def _norm_before(part: str, readers: list[str], block: nn.Module, trace: Trace) -> str | None:
    """The norm whose result is the input of a part, if nothing beside its readers takes it."""
    x = trace.taken[part]
    readings = {name for name, taken in trace.taken.items() if taken is x}
    givers = (n for n, given in trace.given.items() if given is x and n not in readings)
    norm = next(givers, None)
    if norm is None or readings != {part, *readers}:
        return None
    return norm if all(p.dim() == 1 for p in block.get_submodule(norm).parameters()) else None


def _channels(block: nn.Module, source: str) -> int:
    """How many channels a norm or layer gives; fewer than are read where heads share values."""
    return next(len(p) for p in block.get_submodule(source).parameters(recurse=False))


@torch.no_grad()
def fold(block: nn.Module, source: str, readers: list[str], scale: Tensor) -> None:
    """Divide what the source gives by a scale and multiply the readers' weights with it."""
    giver = block.get_submodule(source)
    if isinstance(giver, Norm):
        giver.rescale(1 / scale)
    else:
        for given in giver.parameters(recurse=False):
            given.data = given.data / scale.view(-1, *(1,) * (given.dim() - 1))
    for name in readers:
        layer = plain_linear(block, name)
        layer.weight.data = layer.weight.data * scale
