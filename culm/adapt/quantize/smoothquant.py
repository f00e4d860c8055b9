"""SmoothQuant: channels with outliers are scaled down before activations become int8.

arXiv 2211.10438. The scale of channel j moves a share of its range from the activations, where
one great channel makes the steps of all others coarse, into the weights:

    s_j = max|x_j|^strength / max|w_j|^(1 - strength)

The paper folds behind norms alone; here it is done wherever scales fold, as in AWQ.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from culm.adapt.quantize.calibrate import Calibration, Inputs
from culm.adapt.quantize.fold import fold_all
from culm.adapt.quantize.method import Calibrated, plain_linear
from culm.adapt.quantize.w8a8 import W8A8

LEAST = 1e-5  # of the range of a channel that is never used


class SmoothQuant(Calibrated[W8A8]):
    """strength: how much of the range moves into the weights; 1 is all of it."""

    kind: Literal["smoothquant"] = "smoothquant"
    codes = W8A8
    strength: Annotated[float, Field(ge=0, le=1)] = 0.5

    def quantize(
        self,
        calibration: Calibration,
        block: nn.Module,
        stages: list[list[str]],
        quantizers: dict[str, W8A8],
    ) -> None:
        measured = calibration.measure(block, (stage[0] for stage in stages))
        inputs = {name: measured[stage[0]] for stage in stages for name in stage}

        def scale(names: list[str], seen: Inputs) -> Tensor:
            return self.scale([plain_linear(block, name).weight for name in names], seen)

        for name in fold_all(calibration, block, inputs, self.kind, scale):
            block.set_submodule(name, quantizers[name].round(plain_linear(block, name)))

    @torch.no_grad()
    def scale(self, weights: list[Tensor], inputs: Inputs) -> Tensor:
        """The scale (inputs,) for weights (outputs, inputs) that read the same."""
        rows = torch.cat([weight.float() for weight in weights])
        greatest, of_weights = inputs.greatest, rows.abs().amax(0)
        return (
            greatest.clamp_min(LEAST).pow(self.strength)
            / of_weights.clamp_min(LEAST).pow(1 - self.strength)
        ).clamp_min(LEAST)
