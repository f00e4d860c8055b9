"""AWQ: input channels that matter are scaled up before rounding, so that they lose less.

arXiv 2306.00978. x W^T = (x / s) (W s)^T, where the norm or layer that gives x is divided by s:
s = mean|x|^a, with the a whose rounded layers give the nearest outputs. Then the ends of each
group are drawn in as far as that helps. Errors are those of the layers' outputs (the paper's
equation 4), which the Gram matrix of the inputs gives exactly, without keeping the inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, Protocol, runtime_checkable

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from culm.adapt.quantize.calibrate import Calibration, Inputs, Trace
from culm.adapt.quantize.int4 import Int4Linear, nearest
from culm.adapt.quantize.method import Calibrated, plain_linear
from culm.config import SettingError

UNCLIPPED = ("q", "k")  # their errors are multiplied with each other in the scores
NARROWEST = 0.5  # what a range is drawn in to, at most
TOLERANCE = 1e-3  # of a block's output, relative to its greatest


@runtime_checkable
class Foldable(Protocol):
    """A part of a block that tells through which of its layers a scale of channels can move.

    folds: from a layer of the part, or `x`, the part's input, to the layers that alone read it.
    """

    folds: Mapping[str, tuple[str, ...]]


class AWQ(Calibrated):
    """steps: how many exponents, and how many ranges, are tried."""

    kind: Literal["awq"] = "awq"
    steps: PositiveInt = 20

    def quantize(
        self, calibration: Calibration, block: nn.Module, stages: list[list[str]], group: int
    ) -> None:
        measured = calibration.measure(block, (stage[0] for stage in stages))
        inputs = {name: measured[stage[0]] for stage in stages for name in stage}
        before = calibration.first(block)
        for source, readers in foldings(block, calibration.trace(block)):
            targets = [name for name in readers if name in inputs]
            if targets:
                scale = self.scale([_weight(block, n) for n in targets], inputs[targets[0]], group)
                fold(block, source, readers, scale)
                inputs |= {name: inputs[name].divided(scale) for name in targets}
        difference = (calibration.first(block) - before).abs().max()
        if not difference <= TOLERANCE * before.abs().max():
            raise SettingError("method: awq does not fit a part of this model; take method=gptq")
        for name, seen in inputs.items():
            weight = _weight(block, name)
            if name.rpartition(".")[2] not in UNCLIPPED:
                weight = self.clipped(weight, seen.gram, group)
            layer = plain_linear(block, name)
            layer.weight = nn.Parameter(weight, requires_grad=False)
            block.set_submodule(name, Int4Linear.from_linear(layer, group))

    @torch.no_grad()
    def scale(self, weights: list[Tensor], inputs: Inputs, group: int) -> Tensor:
        """The scale (inputs,) for weights (outputs, inputs) that read the same; 1 if none helps."""
        best, least = torch.ones_like(inputs.magnitude), float("inf")
        for step in range(self.steps):
            scale = inputs.magnitude.pow(step / self.steps).clamp_min(1e-4)
            scale = scale / (scale.max() * scale.min()).sqrt()
            error = sum(inputs.error(nearest(w * scale, group) / scale - w) for w in weights)
            if error < least:
                best, least = scale, error
        return best

    @torch.no_grad()
    def clipped(self, weight: Tensor, gram: Tensor, group: int) -> Tensor:
        """weight: (outputs, inputs) with the range of each group drawn in where that helps."""
        groups = weight.unflatten(1, (-1, group))
        blocks = torch.stack(
            [g[:, i * group : (i + 1) * group] for i, g in enumerate(gram.split(group))]
        )
        low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
        best, least = groups, torch.full_like(low, float("inf"))
        for step in range(self.steps):
            width = 1 - (1 - NARROWEST) * step / self.steps
            narrow = groups.clamp(low * width, high * width)
            change = nearest(narrow.flatten(1), group).view_as(groups) - groups
            error = torch.einsum("ogi,gij,ogj->og", change, blocks, change)[..., None]
            best = torch.where(error < least, narrow, best)
            least = torch.minimum(error, least)
        return best.flatten(1)


def foldings(block: nn.Module, trace: Trace) -> Iterator[tuple[str, list[str]]]:
    """Where a scale can move: a norm or layer, and all the layers that read what it gives."""
    for name, part in block.named_modules():
        if not isinstance(part, Foldable) or name not in trace.taken:
            continue
        for giver, readers in part.folds.items():
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
    for given in block.get_submodule(source).parameters(recurse=False):
        given.data = given.data / scale.view(-1, *(1,) * (given.dim() - 1))
    for name in readers:
        layer = plain_linear(block, name)
        layer.weight.data = layer.weight.data * scale


def _weight(block: nn.Module, name: str) -> Tensor:
    return plain_linear(block, name).weight.detach().float()
