"""AWQ: input channels that matter are scaled up before rounding, so that they lose less.

arXiv 2306.00978. x W^T = (x / s) (W s)^T, where the norm or layer that gives x is divided by s:
s = mean|x|^a, with the a whose rounded layers give the nearest outputs. Then the ends of each
group are drawn in as far as that helps. Errors are those of the layers' outputs (the paper's
equation 4), which the Gram matrix of the inputs gives exactly, without keeping the inputs.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from culm.adapt.quantize.calibrate import Calibration, Inputs
from culm.adapt.quantize.fold import fold_all
from culm.adapt.quantize.int4 import Int4, Int4Linear, nearest
from culm.adapt.quantize.method import Calibrated, plain_linear

UNCLIPPED = ("q", "k")  # their errors are multiplied with each other in the scores
NARROWEST = 0.5  # what a range is drawn in to, at most


class AWQ(Calibrated[Int4]):
    """steps: how many exponents, and how many ranges, are tried."""

    kind: Literal["awq"] = "awq"
    codes = Int4
    steps: PositiveInt = 20

    def quantize(
        self,
        calibration: Calibration,
        block: nn.Module,
        stages: list[list[str]],
        quantizers: dict[str, Int4],
    ) -> None:
        measured = calibration.measure(block, (stage[0] for stage in stages))
        inputs = {name: measured[stage[0]] for stage in stages for name in stage}

        def scale(names: list[str], seen: Inputs) -> Tensor:
            return self.scale([(_weight(block, n), quantizers[n].group) for n in names], seen)

        for name, seen in fold_all(calibration, block, inputs, self.kind, scale).items():
            weight, group = _weight(block, name), quantizers[name].group
            if name.rpartition(".")[2] not in UNCLIPPED:
                weight = self.clipped(weight, seen.gram, group)
            layer = plain_linear(block, name)
            layer.weight = nn.Parameter(weight, requires_grad=False)
            block.set_submodule(name, Int4Linear.from_linear(layer, group))

    @torch.no_grad()
    def scale(self, weights: list[tuple[Tensor, int]], inputs: Inputs) -> Tensor:
        """The scale (inputs,) of channels that serves these weights best; 1 if none helps.

        weights: (outputs, inputs), which read the same, each with its group.
        """
        best, least = torch.ones_like(inputs.magnitude), float("inf")
        for step in range(self.steps):
            scale = inputs.magnitude.pow(step / self.steps).clamp_min(1e-4)
            scale = scale / (scale.max() * scale.min()).sqrt()
            error = sum(inputs.error(nearest(w * scale, g) / scale - w) for w, g in weights)
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


def _weight(block: nn.Module, name: str) -> Tensor:
    return plain_linear(block, name).weight.detach().float()
