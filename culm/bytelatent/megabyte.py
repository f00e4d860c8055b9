"""MegaByte (arXiv 2305.07185): patches of a fixed number of bytes.

The latent model reads the embeddings of the P bytes of a patch, one after the other in one vector,
and gives a vector for each of the next P bytes. The decoder reads that, plus the embedding of the
byte before the one that it predicts, and sees the bytes of one patch alone.

bytes                b0 b1 b2 b3 | b4 b5 b6 b7          P = 4
the decoder reads    b0 b1 b2 | b3 b4 b5 b6 | b7        what it predicts are the bytes of a patch
the latent model     ^          ^             ^         reads the last P bytes; the first time, the
                                                        first byte, with learned pads before it

The paper replaces the last byte of the patch before by a pad; here the decoder reads it. Positions
are rotary, not learned.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from culm.bytelatent.bridge import Bridge, Ends, within_patches
from culm.bytelatent.model import PatchConfig
from culm.bytelatent.patches import Patches
from culm.bytelatent.reading import Reading
from culm.model.context import Context
from culm.model.linear import Linear


class MegaByte(PatchConfig):
    """patch: bytes of a patch; it divides the width of the latent model."""

    kind: Literal["megabyte"] = "megabyte"
    patch: int = Field(default=4, ge=2)

    @model_validator(mode="after")
    def _divides(self) -> MegaByte:
        if self.latent.width % self.patch:
            raise ValueError(
                f"patch: {self.patch} does not divide latent.width={self.latent.width}"
            )
        return self

    def bridge(self) -> MegaByteBridge:
        return MegaByteBridge(self.vocabulary, self.patch, self.width, self.latent.width)


class MegaByteBridge(Bridge):
    """embed: of the bytes of a patch; its last row is the pad. local: from a slice of what the
    latent model gives to the width of the decoder.
    """

    def __init__(self, vocabulary: int, patch: int, width: int, latent: int) -> None:
        super().__init__()
        self.patch, self.bytes_per_patch = patch, float(patch)
        self.width, self._byte = patch * width, width
        self.embed = nn.Embedding(vocabulary + 1, latent // patch)
        self.local = Linear(latent // patch, width)

    def ends(self, states: Tensor, reading: Reading) -> Ends:
        return Ends((self._places(reading.known) == 0) | (reading.known == 0))

    def _places(self, positions: Tensor) -> Tensor:
        """The place in its patch of the byte that each byte predicts."""
        return (positions + 1) % self.patch

    def into(self, states: Tensor, patches: Patches, ends: Ends, reading: Reading) -> Tensor:
        tokens, there = reading.window("tokens", reading.tokens, patches, self.patch)
        tokens = tokens.masked_fill(~there, self.embed.num_embeddings - 1)
        return self.embed(tokens).flatten(-2).to(states.dtype)

    def outward(self, latent: Tensor, patches: Patches, ends: Ends, reading: Reading) -> Tensor:
        return self.local(latent.unflatten(-1, (self.patch, -1))).flatten(-2)

    def merged(
        self, states: Tensor, spread: Tensor, patches: Patches, ends: Ends, reading: Reading
    ) -> Tensor:
        slices = spread.unflatten(-1, (self.patch, self._byte))
        places = self._places(reading.known)[..., None, None].expand(-1, -1, 1, self._byte)
        return states + slices.gather(2, places)[..., 0, :]

    def decoded(self, context: Context, patches: Patches) -> Context:
        places = self._places(context.positions)
        starts = (context.positions - places).clamp_min(0)
        return within_patches(context, patches, starts)
