"""Move scales of channels from the input of a layer into the norm or layer before it.

    x W^T = (x / s) (W s)^T

The norm or layer before x is divided by s, and all readers of x are multiplied: no output changes.
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

TOLERANCE = 1e-3  # of a block's output, relative to its maximum


ScaleOf = Callable[[list[str], Inputs], Tensor]


@runtime_checkable
class Foldable(Protocol):
    """A part of a block that declares through which of its layers a scale of channels can move.

    scale_folds: from a layer of the part, or `x` (its input), to all the layers that read it.
    """

    scale_folds: Mapping[str, tuple[str, ...]]


@torch.no_grad()
def fold_all(
    calibration: Calibration, block: nn.Module, inputs: dict[str, Inputs], kind: str, scale: ScaleOf
) -> dict[str, Inputs]:
    """Scale the channels of a block wherever that folds; returns the new inputs of its layers.

    inputs: of the layers to quantise, by name. scale: the scale for layers with a common input,
    and that input. kind: of the method, for messages.

    Raises:
        SettingError: the output of the block changed.
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
        raise SettingError(f"method: {kind} does not fit a part of this model; use another one")
    return inputs


def foldings(block: nn.Module, trace: Trace) -> Iterator[tuple[str, list[str]]]:
    """Where a scale can move: a norm or layer, and all the layers that read its output."""
    for name, part in block.named_modules():
        if not isinstance(part, Foldable) or name not in trace.inputs:
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
    """The norm before a part, if only these readers use its output."""
    x = trace.inputs[part]
    readings = {name for name, read in trace.inputs.items() if read is x}
    givers = (n for n, made in trace.outputs.items() if made is x and n not in readings)
    norm = next(givers, None)
    if norm is None or readings != {part, *readers}:
        return None
    return norm if all(p.dim() == 1 for p in block.get_submodule(norm).parameters()) else None


def _channels(block: nn.Module, source: str) -> int:
    """Output channels of a norm or layer; fewer than are read if heads share values."""
    return next(len(p) for p in block.get_submodule(source).parameters(recurse=False))


@torch.no_grad()
def fold(block: nn.Module, source: str, readers: list[str], scale: Tensor) -> None:
    """Divide the output of the source by a scale and multiply the readers' weights by it."""
    giver = block.get_submodule(source)
    if isinstance(giver, Norm):
        giver.rescale(1 / scale)
    else:
        for given in giver.parameters(recurse=False):
            given.data = given.data / scale.view(-1, *(1,) * (given.dim() - 1))
    for name in readers:
        layer = plain_linear(block, name)
        layer.weight.data = layer.weight.data * scale
