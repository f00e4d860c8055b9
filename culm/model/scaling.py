"""Scaling rules: settings found on a small model hold for a wide and deep one.

With m = width / base_width and l = layers / base_depth (1 for muP), a rule has these factors:

    place of a parameter            initial std   rate   weight decay   eps of Adam
    embedding, head                 1             1      1              1/m *
    matrices of blocks              1/sqrt(m)     1/m    m              1/(m l) *
    vectors of blocks               -             1      -              1/(m l) *
    norm after the blocks           -             1      -              1/m *
    * CompleteP only

and in the forward: 1/m for the input of the head, sqrt(base_head_dim / head_dim) for scores of
attention, which then fall with 1/head_dim, and 1/l for branches. Rate times decay is constant.
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
WITHIN = ("blocks", "mtp", "bridge")
NESTED = ("encoder", "latent")  # models within one of patches, with the same places
NARROW = ("bias", ".mix")  # of experts, and of short convolutions: no sums over the width


def place_of(name: str, parameter: nn.Parameter) -> Place:
    """The place of a parameter in a Transformer, by its name.

    Raises:
        TypeError: no rule knows this place.
    """
    root, _, rest = name.partition(".")
    if root in NESTED:
        return place_of(rest, parameter)
    if root in WITHIN:
        return "matrix" if parameter.ndim >= 2 and not name.endswith(NARROW) else "vector"
    if root not in ROOTS:
        raise TypeError(f"{name}: no rule scales its learning rate; see culm.model.scaling")
    return ROOTS[root]


class Multiples(NamedTuple):
    """Factors of learning rate, weight decay and eps for a group of parameters."""

    rate: float = 1.0
    decay: float = 1.0
    eps: float = 1.0


class WidthRule(Config):
    """The rules of muP, for the kinds below.

    base_width, base_head_dim: of the model for which rates and initial weights were chosen. All
    inner sizes of a block (heads, hidden, rank) are assumed to grow with the width.
    """

    base_width: PositiveInt = 256
    base_head_dim: PositiveInt = 64

    def widths(self, width: int) -> float:
        """The width of a model divided by that of its base."""
        return width / self.base_width

    def depths(self, layers: int) -> float:
        """The depth of a model divided by that of its base; 1 if the rule ignores depth."""
        return 1.0

    def multiples(self, place: Place, width: int, layers: int) -> Multiples:
        """Factors for the parameters in a place of a model of this size.

        An orthogonal step (Muon with the scale of arXiv 2502.16982) has a spectral norm of
        sqrt(width) times the rate, so its rate falls with 1/sqrt(m) instead.
        """
        times = self.widths(width)
        if place == "matrix":
            return Multiples(1 / times, times)
        return Multiples(times**-0.5, times**0.5) if place == "orthogonal" else Multiples()

    @torch.no_grad()
    def shrink(self, model: nn.Module, width: int) -> None:
        """Scale freshly initialised weights by the rule, in place."""
        for name, parameter in model.named_parameters():
            if place_of(name, parameter) == "matrix":
                parameter.mul_(self.widths(width) ** -0.5)


class MuP(WidthRule):
    """muP (arXiv 2203.03466): the size of a learning step does not depend on the width."""

    kind: Literal["mup"] = "mup"


class CompleteP(WidthRule):
    """CompleteP (arXiv 2505.01618) with alpha = 1: muP for width and depth.

    base_depth: layers of the model for which rates were
    chosen. Initial weights must not shrink with the depth too: use init llama or zero.
    """

    kind: Literal["completep"] = "completep"
    base_depth: PositiveInt = 4

    def depths(self, layers: int) -> float:
        return layers / self.base_depth

    def multiples(self, place: Place, width: int, layers: int) -> Multiples:
        within = place in ("matrix", "vector")
        eps = 1 / (self.widths(width) * (self.depths(layers) if within else 1.0))
        return super().multiples(place, width, layers)._replace(eps=eps)


Scaling = one_of(MuP | CompleteP)
