"""GPTQ: later columns compensate for the rounding error of each column.

arXiv 2210.17323. With H the Gram matrix of the inputs and U the upper Cholesky factor of its
inverse, column j is rounded and the columns after it change by

    w[j+1:] -= (w[j] - rounded(w[j])) / U[j, j] * U[j, j+1:]

which is optimal for the output. Columns after a block of 128 change once, after the block.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveFloat, model_validator
from torch import Tensor, nn

from culm.adapt.quantize.calibrate import Calibration
from culm.adapt.quantize.int4 import Int4, Int4Linear, codes_of, grid, values_of
from culm.adapt.quantize.linear import QuantizedGrouped, expert
from culm.adapt.quantize.method import Calibrated, plain_linear
from culm.config import SettingError
from culm.model.linear import GroupedLinear, Linear

BLOCK = 128  # columns; a multiple of every group
# Damping grows with inputs / rows, so that few rows are not much worse than rounding to nearest.
SCARCE = 30


class GPTQ(Calibrated[Int4]):
    """damping: added to the diagonal of the Gram matrix, relative to the mean of the diagonal.

    static_groups: scales of groups are those of the original weights.
    act_order: columns with the largest inputs come first, when most others can still change.

    An expert is solved on its own tokens; the fewer they are, the larger is the damping, up to
    rounding to nearest for an expert without tokens.
    """

    kind: Literal["gptq"] = "gptq"
    codes = Int4
    layers = (Linear, GroupedLinear)
    damping: PositiveFloat = 0.01
    static_groups: bool = True
    act_order: bool = True

    @model_validator(mode="after")
    def _goes_together(self) -> GPTQ:
        if self.act_order and not self.static_groups:
            raise ValueError("act_order: it scatters groups, so it needs static_groups=true")
        return self

    def quantize(
        self,
        calibration: Calibration,
        block: nn.Module,
        stages: list[list[str]],
        quantizers: dict[str, Int4],
    ) -> None:
        for stage in stages:  # each reads the output of the quantised stages before it
            if isinstance(block.get_submodule(stage[0]), GroupedLinear):
                self._solve_experts(calibration, block, stage, quantizers)
                continue
            gram = calibration.measure(block, stage[:1])[stage[0]].gram
            for name in stage:
                layer, group = plain_linear(block, name), quantizers[name].group
                block.set_submodule(name, self.solve(layer, gram, group, name))

    def _solve_experts(
        self,
        calibration: Calibration,
        block: nn.Module,
        stage: list[str],
        quantizers: dict[str, Int4],
    ) -> None:
        read = calibration.measure_experts(block, stage[0])
        for name in stage:
            layer, group = block.get_submodule(name), quantizers[name].group
            assert isinstance(layer, GroupedLinear)
            each = [
                self.solve(expert(layer, number), gram / rows, group, name, rows)
                if rows
                else Int4Linear.from_linear(expert(layer, number), group)
                for number, (gram, rows) in enumerate(read)
            ]
            bias = None if layer.bias is None else layer.bias.detach().clone()
            block.set_submodule(name, QuantizedGrouped(each, bias))

    @torch.no_grad()
    def solve(
        self, layer: Linear, gram: Tensor, group: int, name: str = "", rows: int | None = None
    ) -> Int4Linear:
        """The int4 layer with the least output error; gram: (inputs, inputs) fp32.

        rows: number of rows behind the mean `gram`; None: enough.
        """
        weight, gram = layer.weight.detach().float().clone(), gram.clone()
        unused = gram.diagonal() == 0
        gram.diagonal()[unused] = 1
        if rows is None:  # few rows do not prove that an input is never used
            weight[:, unused] = 0
        power = gram.diagonal()
        order = power.argsort(descending=True, stable=True) if self.act_order else None
        scarce = SCARCE * layer.in_features / rows if rows else 0.0
        power += self.damping * (1 + scarce) * power.mean()
        groups = _Groups(weight, group, fixed=self.static_groups)
        if order is not None:
            weight, gram = weight[:, order], gram[order][:, order]
        codes = _compensated(weight, _inverse_factor(gram, name), groups, order)
        if order is not None:
            codes = codes[:, order.argsort()]
        return Int4Linear.from_codes(codes, groups.scale, groups.zero, layer.bias)


class _Groups:
    """The scale of each group: fixed before, or computed at its first column."""

    def __init__(self, weight: Tensor, size: int, fixed: bool) -> None:
        self.size, self.fixed = size, fixed
        self.scale, self.zero = grid(weight.unflatten(1, (-1, size)))

    def at(self, column: int, ahead: Tensor) -> tuple[Tensor, Tensor]:
        """scale and zero (outputs,) of a column; ahead: this column and those after it."""
        group, inside = divmod(column, self.size)
        if not self.fixed and inside == 0:
            self.scale[:, group], self.zero[:, group] = grid(ahead[:, : self.size])
        return self.scale[:, group], self.zero[:, group]


def _inverse_factor(gram: Tensor, name: str) -> Tensor:
    """Upper U with U^T U = inverse of the damped Gram matrix."""
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
        return torch.linalg.cholesky(inverse, upper=True)
    except torch.linalg.LinAlgError:
        raise SettingError(
            f"damping: too small for the input of {name} on this text; increase it"
        ) from None


def _compensated(weight: Tensor, upper: Tensor, groups: _Groups, order: Tensor | None) -> Tensor:
    """Codes (outputs, inputs) of columns that are rounded from left to right; changes `weight`.

    order: the original index of each column, None if they are in order.
    """
    codes = torch.empty_like(weight)
    columns = range(weight.shape[1]) if order is None else order.tolist()
    for start in range(0, weight.shape[1], BLOCK):
        end = min(start + BLOCK, weight.shape[1])
        ahead, factor = weight[:, start:end], upper[start:end, start:end]
        errors = torch.empty_like(ahead)
        for j in range(end - start):
            scale, zero = groups.at(columns[start + j], ahead[:, j:])
            codes[:, start + j] = codes_of(ahead[:, j], scale, zero)
            rounded = values_of(codes[:, start + j], scale, zero)
            errors[:, j] = (ahead[:, j] - rounded) / factor[j, j]
            ahead[:, j:] -= torch.outer(errors[:, j], factor[j, j:])
        weight[:, end:] -= errors @ upper[start:end, end:]
    return codes
