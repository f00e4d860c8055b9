"""H-Net with one stage (arXiv 2507.07955): the model learns where patches end.

A router compares the encoder's states of two neighbouring bytes. Where they differ, a chunk ends:

    p_t = (1 - cos(W_q h_{t-1}, W_k h_t)) / 2,   an end where p_t >= 1/2,   p = 1 at the first byte

The latent model reads the states there. What it gives is smoothed over chunks, so that gradients
reach the router even where it is undecided, and then repeated over the bytes up to the next end:

    z_j = P_j g_j + (1 - P_j) z_{j-1}         P_j: p of the chunk's end
    x_t = z_{j(t)} * ste(c_t) + W_r h_t       c_t = p_t at an end, else 1 - p_t; ste: value 1

A ratio loss holds one byte in N for an end. It is computed for each row, so that it does not depend
on how rows are divided into micro-batches; the paper takes whole batches. The outer stages are
Transformer blocks with windows, where the paper has Mamba-2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from culm.bytelatent.bridge import Bridge, Ends
from culm.bytelatent.cache import Kept
from culm.bytelatent.model import EncodedPatches
from culm.bytelatent.patches import Patches, taken
from culm.bytelatent.reading import Reading
from culm.model.context import Record
from culm.model.init import CustomInit
from culm.model.linear import Linear

EDGE = 1e-4  # probabilities of the smoothing are so far from 0 and 1


class HNet(EncodedPatches):
    """encoder: blocks before the patches. bytes_per_patch: N, which the ratio loss holds.
    ratio_weight: of that loss.
    """

    kind: Literal["hnet"] = "hnet"
    bytes_per_patch: float = Field(default=4.5, gt=1)
    ratio_weight: NonNegativeFloat = 0.03

    def bridge(self) -> HNetBridge:
        return HNetBridge(self)


class FixedStart(Linear, CustomInit):
    """A linear layer that starts as `gain` times the identity."""

    def __init__(self, width: int, gain: float) -> None:
        super().__init__(width, width)
        self.gain = gain

    def init_weights(self, generator: Callable[[str], torch.Generator], std: float) -> None:
        self.weight.copy_(self.gain * torch.eye(self.in_features))


class HNetBridge(Bridge, CustomInit):
    """q, k: of the router. pad: what the latent model reads beyond the state of a byte. residual:
    from the encoder to the decoder.
    """

    def __init__(self, config: HNet) -> None:
        super().__init__()
        self.width, self.bytes_per_patch = config.width, config.bytes_per_patch
        self._weight = config.ratio_weight
        self.q, self.k = FixedStart(self.width, 1.0), FixedStart(self.width, 1.0)
        self.residual = FixedStart(self.width, 0.0)
        self.pad = nn.Parameter(torch.empty(config.latent.width - self.width))

    def init_weights(self, generator: Callable[[str], torch.Generator], std: float) -> None:
        self.pad.normal_(0.0, std, generator=generator("pad"))

    @property
    def kept(self) -> Kept:
        return {"states": ((self.width,), None)}

    def ends(self, states: Tensor, reading: Reading) -> Ends:
        before = reading.before("states", reading.keep("states", states))
        cosine = F.cosine_similarity(self.q(before).float(), self.k(states).float(), dim=-1)
        p = ((1 - cosine) / 2).masked_fill(reading.known == 0, 1.0)
        at = p >= 0.5
        self._report(at, p, reading)
        return Ends(at, probability=p)

    def _report(self, at: Tensor, p: Tensor, reading: Reading) -> None:
        if reading.context.records is not None:
            ratio = ratio_loss(at, p, self.bytes_per_patch, reading.real)
            reading.context.record(Record("ratio", ratio, self._weight))

    def into(self, states: Tensor, patches: Patches, ends: Ends, reading: Reading) -> Tensor:
        given = taken(states, patches.columns)
        pad = self.pad.to(given.dtype).expand(*given.shape[:2], -1)
        return torch.cat((given, pad), -1)

    def outward(self, latent: Tensor, patches: Patches, ends: Ends, reading: Reading) -> Tensor:
        assert ends.probability is not None
        values = latent[..., : self.width]
        if not values.shape[1]:
            return values
        p = ends.probability.gather(1, patches.columns)
        earlier = None
        if reading.cache is not None:
            places = (patches.positions[:, :1] - 1).clamp_min(0)
            earlier = reading.cache.read("latent", reading.context.view.slot, places)[:, 0]
        return smoothed(values, p, patches.positions, earlier)

    def merged(
        self, states: Tensor, spread: Tensor, patches: Patches, ends: Ends, reading: Reading
    ) -> Tensor:
        p = ends.probability
        assert p is not None
        confidence = p.where(ends.at, 1 - p)
        confidence = 1 + confidence - confidence.detach()  # the value is 1, the gradient that of c
        residual = self.residual(states.float())
        return (spread.float() * confidence[..., None] + residual).to(states.dtype)


def smoothed(values: Tensor, p: Tensor, positions: Tensor, earlier: Tensor | None = None) -> Tensor:
    """z_j = P_j g_j + (1 - P_j) z_{j-1} within documents, by one matmul.

    values: (B, N, E), g; p: (B, N) fp32; positions: (B, N), of each patch in its document, which
    starts with z = g. earlier: (B, E), z before the first patch, where its position is not 0.

    The logarithms are added up in fp64: the total grows with the row, and its differences are what
    counts, so in fp32 a long row would differ from the same patches read one by one.
    """
    first = positions == 0
    p = p.clamp(EDGE, 1 - EDGE)
    total = (1 - p).double().log().cumsum(1)
    place = torch.arange(p.shape[1], device=p.device)
    start = place.where(first, -1).cummax(1).values  # of the document of a patch; -1: earlier
    seen = (place <= place[:, None]) & (place >= start[..., None])
    away = (total[:, :, None] - total[:, None]).to(p.dtype)
    fade = away.masked_fill(~seen, float("-inf")).exp()
    z = (fade * p.where(~first, 1.0)[:, None]) @ values.float()
    if earlier is not None:
        kept = total.to(p.dtype).exp().masked_fill(start >= 0, 0.0)
        z = z + kept[..., None] * earlier.float()[:, None]
    return z.to(values.dtype)


def ratio_loss(at: Tensor, p: Tensor, n: float, real: Tensor | None = None) -> Tensor:
    """N / (N - 1) ((N - 1) F G + (1 - F) (1 - G)), summed over the bytes of all rows; () fp32.

    F: the share of ends in a row, at: (B, T) bool; G: the mean of p: (B, T). It is 1 where both are
    1 / N. real: (B, T) bool, False for padding.
    """
    counted = torch.ones_like(p) if real is None else real.to(p.dtype)
    bytes_ = counted.sum(1)
    f = (at * counted).sum(1) / bytes_.clamp_min(1)
    g = (p * counted).sum(1) / bytes_.clamp_min(1)
    return (n / (n - 1) * ((n - 1) * f * g + (1 - f) * (1 - g)) * bytes_).sum()
