"""SmoothQuant: channels with outliers are scaled down before activations become int8.

arXiv 2211.10438. The scale of channel j moves part of its range from the activations, where one
large channel makes the steps of all others coarse, into the weights:

    s_j = max|x_j|^strength / max|w_j|^(1 - strength)

The paper folds scales into norms only; here it is done wherever scales fold, as in AWQ.
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

MINIMUM = 1e-5  # range of a channel that is never used


class SmoothQuant(Calibrated[W8A8]):
    """strength: the part of the range that moves into the weights; 1 is all of it."""

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
        """The scale (inputs,) for weights (outputs, inputs) with a common input."""
        rows = torch.cat([weight.float() for weight in weights])
        maximum, of_weights = inputs.maximum, rows.abs().amax(0)
        return (
            maximum.clamp_min(MINIMUM).pow(self.strength)
            / of_weights.clamp_min(MINIMUM).pow(1 - self.strength)
        ).clamp_min(MINIMUM)
