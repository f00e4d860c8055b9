"""AWQ: important input channels are scaled up before rounding, so that they lose less.

arXiv 2306.00978. x W^T = (x / s) (W s)^T, where the norm or layer before x is divided by s:
s = mean|x|^a, with the a that minimises the error of the outputs. Then the range of each group is
clipped as far as that helps. Errors are those of the layers' outputs (the paper's equation 4),
which follow exactly from the Gram matrix of the inputs.
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

UNCLIPPED = ("q", "k")  # the scores multiply their errors with each other
NARROWEST = 0.5  # smallest clipped range, relative to the full one


class AWQ(Calibrated[Int4]):
    """steps: number of exponents, and of ranges, to try."""

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
        """The best scale (inputs,) of channels for these weights; 1 if none helps.

        weights: (outputs, inputs), with the same input, each with its group.
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
        """weight: (outputs, inputs) with the range of each group clipped where that helps."""
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
