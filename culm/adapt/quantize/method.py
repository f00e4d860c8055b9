"""How codes are found: rounding to nearest, or with the help of text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Generic, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from culm.adapt.quantize.calibrate import Calibration
from culm.adapt.quantize.quantizer import LinearQuantizer, assigned, round_to_nearest
from culm.config import Config, SettingError
from culm.model.linear import GroupedLinear, Linear
from culm.model.transformer import Transformer


class Method(Config, ABC):
    """calibrated: whether it needs text."""

    kind: str
    calibrated: ClassVar[bool]

    @abstractmethod
    def apply(
        self, model: Transformer, quantizers: Sequence[LinearQuantizer], tokens: Tensor | None
    ) -> int:
        """Quantise the quantisers' targets in place; gives how many.

        A layer that several of them name is taken by the first.
        tokens: (N, T) rows of text to calibrate on, each one document.

        Raises:
            ValueError: the method and the quantisers do not go together, text is missing, or a
                layer cannot be quantised. The model is then as it was.
        """


class RTN(Method):
    """Round to nearest; knows the weights alone."""

    kind: Literal["rtn"] = "rtn"
    calibrated = False

    def apply(
        self, model: Transformer, quantizers: Sequence[LinearQuantizer], tokens: Tensor | None
    ) -> int:
        return round_to_nearest(model, assigned(model, quantizers))


Q = TypeVar("Q", bound=LinearQuantizer)


class Calibrated(Method, ABC, Generic[Q]):
    """Codes that keep the outputs on text, found block by block.

    codes: the quantisers whose codes it finds; layers: of which kinds. Layers of others or outside
    of the blocks, and those that no token reached, are rounded to nearest.
    """

    calibrated = True
    codes: ClassVar[type[LinearQuantizer]]
    layers: ClassVar[tuple[type[Linear | GroupedLinear], ...]] = (Linear,)

    @abstractmethod
    def quantize(
        self,
        calibration: Calibration,
        block: nn.Module,
        stages: list[list[str]],
        quantizers: dict[str, Q],
    ) -> None:
        """Put quantised layers into a block; those of a stage read the same input.

        quantizers: by the names in the stages.
        """

    @torch.no_grad()
    def apply(
        self, model: Transformer, quantizers: Sequence[LinearQuantizer], tokens: Tensor | None
    ) -> int:
        left = assigned(model, quantizers)
        count = len(left)
        found = {
            name
            for name, quantizer in left.items()
            if type(quantizer) is self.codes and isinstance(model.get_submodule(name), self.layers)
        }
        if not found:
            kinds = " and ".join(dict.fromkeys(quantizer.kind for quantizer in quantizers))
            codes = self.codes.model_fields["kind"].default
            wrong = f"{self.kind} finds codes of {codes}, not of {kinds}"
            raise SettingError(f"method: {wrong}; take method=rtn")
        rows = _enough([model.get_submodule(name) for name in found], tokens, self.kind)
        calibration = Calibration(model, rows)
        for prefix, block in calibration:
            inside = {n.removeprefix(f"{prefix}."): n for n in found if n.startswith(f"{prefix}.")}
            stages = calibration.trace(block).stages(inside)
            taken = {name: left.pop(inside[name]) for stage in stages for name in stage}
            self.quantize(calibration, block, stages, cast(dict[str, Q], taken))
        if left:
            round_to_nearest(model, left)
        return count


def plain_linear(parent: nn.Module, name: str) -> Linear:
    """The layer of that name, which is not quantised yet."""
    layer = parent.get_submodule(name)
    assert isinstance(layer, Linear)
    return layer


def _enough(layers: Sequence[nn.Module], tokens: Tensor | None, kind: str) -> Tensor:
    if tokens is None:
        raise SettingError(f"calibrate: {kind} needs text; name a file, or take method=rtn")
    needed = max(int(layer.in_features) for layer in layers)  # type: ignore[arg-type]
    if tokens.numel() < needed:
        # Fewer tokens than inputs span only some of the directions that the inputs can take.
        raise SettingError(
            f"calibrate: {tokens.numel():,} tokens to calibrate on are fewer than the {needed:,} "
            "inputs of the widest layer; give more text"
        )
    return tokens
