"""Scaling rules: settings found on a small model hold for a wide and deep one.

With m = width / base_width and l = layers / base_depth (1 for muP), a rule multiplies

    place of a parameter            initial std   rate   weight decay   eps of Adam
    embedding, head                 1             1      1              1/m *
    matrices of blocks              1/sqrt(m)     1/m    m              1/(m l) *
    vectors of blocks               -             1      -              1/(m l) *
    norm behind the blocks          -             1      -              1/m *
    * CompleteP only

and in the forward: what the head reads by 1/m, scores of attention by sqrt(base_head_dim /
head_dim), so that they fall with 1/head_dim, and branches by 1/l. Rate times decay stays.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import PositiveInt
from torch import nn

from culm.config import Config, one_of

Place = Literal["embedding", "head", "matrix", "orthogonal", "vector", "norm"]
ROOTS: dict[str, Place] = {
    "embed": "embedding",
    "positions": "embedding",
    "head": "head",
    "norm": "norm",
}
WITHIN = ("blocks", "mtp")
NARROW = ("bias", ".mix")  # of experts, and of short convolutions: no sums over the width


def place_of(name: str, parameter: nn.Parameter) -> Place:
    """Where in a Transformer the parameter of this name is.

    Raises:
        TypeError: it is in no place that a rule knows.
    """
    root = name.partition(".")[0]
    if root in WITHIN:
        return "matrix" if parameter.ndim >= 2 and not name.endswith(NARROW) else "vector"
    if root not in ROOTS:
        raise TypeError(f"{name}: nothing says how its rate scales; see culm.model.scaling")
    return ROOTS[root]


class Multiples(NamedTuple):
    """What the rate, the weight decay and the eps of a group of parameters are multiplied by."""

    rate: float = 1.0
    decay: float = 1.0
    eps: float = 1.0


class MuP(Config):
    """muP (arXiv 2203.03466): what is learned in a step does not depend on the width.

    base_width, base_head_dim: of the model for which rates and initial weights were chosen. Every
    inner size of a block (heads, hidden, rank) is taken to grow with the width.
    """

    kind: Literal["mup"] = "mup"
    base_width: PositiveInt = 256
    base_head_dim: PositiveInt = 64

    def widths(self, width: int) -> float:
        """How many times as wide as its base a model is."""
        return width / self.base_width

    def depths(self, layers: int) -> float:
        """How many times deeper the model is than its base; 1 if the rule ignores depth."""
        return 1.0

    def multiples(self, place: Place, width: int, layers: int) -> Multiples:
        """Of the parameters in a place of a model of this size.

        An orthogonal step (Muon with the scale of arXiv 2502.16982) has a spectral norm of
        sqrt(width) times the rate, so that its rate falls with 1/sqrt(m) instead.
        """
        times = self.widths(width)
        if place == "matrix":
            return Multiples(1 / times, times)
        return Multiples(times**-0.5, times**0.5) if place == "orthogonal" else Multiples()

    @torch.no_grad()
    def shrink(self, model: nn.Module, width: int) -> None:
        """Rescale initial weights as the rule says, in place."""
        for name, parameter in model.named_parameters():
            if place_of(name, parameter) == "matrix":
                parameter.mul_(self.widths(width) ** -0.5)


class CompleteP(MuP):
    """CompleteP (arXiv 2505.01618), with its alpha of 1: the same for the depth too.

    base_width, base_head_dim: as of mup. base_depth: layers of the model for which rates were
    chosen. Initial weights must not shrink with the depth as well: it goes with init llama or zero.
    """

    kind: Literal["completep"] = "completep"  # type: ignore[assignment]
    base_depth: PositiveInt = 4

    def depths(self, layers: int) -> float:
        return layers / self.base_depth

    def multiples(self, place: Place, width: int, layers: int) -> Multiples:
        within = place in ("matrix", "vector")
        eps = 1 / (self.widths(width) * (self.depths(layers) if within else 1.0))
        return super().multiples(place, width, layers)._replace(eps=eps)


Scaling = one_of(MuP | CompleteP)
