"""SpaceByte (arXiv 2404.14408): wide blocks at the starts of words alone.

A byte is space-like if it is no letter, digit or part of a longer UTF-8 character. The latent model
reads a byte if it is space-like and the one before is not, or if it is the first of a document:
then the next byte usually starts a word. What it gives is added to the state of that byte, from
where the decoder's attention takes it.

The latent model has as many places as there are patches, where the paper has a limit and ignores
what lies beyond.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import PositiveFloat
from torch import Tensor

from culm.bytelatent.bridge import Bridge, Ends
from culm.bytelatent.model import EncodedPatches
from culm.bytelatent.patches import Patches, taken
from culm.bytelatent.reading import Reading


class SpaceByte(EncodedPatches):
    """encoder: blocks before the patches. bytes_per_patch: of the text, for a plan; English prose
    has about 5.6.
    """

    kind: Literal["spacebyte"] = "spacebyte"
    bytes_per_patch: PositiveFloat = 5.6

    @property
    def bare(self) -> bool:
        return True

    def bridge(self) -> SpaceByteBridge:
        return SpaceByteBridge(self.width, self.latent.width, self.bytes_per_patch)


class SpaceByteBridge(Bridge):
    """Selects the states of some bytes, and adds to them; it has no weights."""

    def __init__(self, width: int, latent: int, bytes_per_patch: float) -> None:
        super().__init__()
        self.width, self._latent, self.bytes_per_patch = width, latent, bytes_per_patch

    def ends(self, states: Tensor, reading: Reading) -> Ends:
        space = spacelike(reading.tokens)
        before = spacelike(reading.before("tokens", reading.tokens))
        return Ends((space & ~before) | (reading.known == 0))

    def into(self, states: Tensor, patches: Patches, ends: Ends, reading: Reading) -> Tensor:
        return F.pad(taken(states, patches.columns), (0, self._latent - self.width))

    def outward(self, latent: Tensor, patches: Patches, ends: Ends, reading: Reading) -> Tensor:
        return latent[..., : self.width]

    def merged(
        self, states: Tensor, spread: Tensor, patches: Patches, ends: Ends, reading: Reading
    ) -> Tensor:
        return states + spread * ends.at[..., None].to(spread.dtype)


def spacelike(tokens: Tensor) -> Tensor:
    """Whether a token is a byte that ends a word, or a special token; of any shape, bool."""
    digit = (tokens >= ord("0")) & (tokens <= ord("9"))
    upper = (tokens >= ord("A")) & (tokens <= ord("Z"))
    lower = (tokens >= ord("a")) & (tokens <= ord("z"))
    inside = (tokens >= 0x80) & (tokens <= 0xBF)  # the second to fourth byte of a character
    return ~(digit | upper | lower | inside)
