"""The byte latent Transformer (BLT, arXiv 2412.09871).

Patches end where the next byte is hard to predict (`culm.bytelatent.entropy`), so the latent model
works where there is something to decide. Bytes enter with embeddings of the n-grams that they end;
a patch reads its bytes, and later its bytes read it, by cross-attention. A byte reads the patch
that ended last, never its own.

Cross-attention stands once on each side, after the encoder and before the decoder, where the paper
may have it in every layer; a byte reads no patches before its last one, as in the paper.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from culm.bytelatent.bridge import Bridge, Ends
from culm.bytelatent.cache import Kept
from culm.bytelatent.cross import BytesToPatches, PatchesToBytes
from culm.bytelatent.entropy import Entropy, EntropyPatcher
from culm.bytelatent.model import PatchConfig, Stack
from culm.bytelatent.ngrams import PRIMES, NgramEmbedding
from culm.bytelatent.patches import Patches
from culm.bytelatent.reading import Reading
from culm.config import Config, SettingError
from culm.model.transformer import Transformer


class Ngrams(Config):
    """Hash embeddings. sizes: bytes of the n-grams. functions: hash functions of each size.
    buckets: rows of each table.
    """

    sizes: tuple[Annotated[int, Field(ge=2)], ...] = (3, 4, 5, 6, 7, 8)
    functions: int = Field(default=1, ge=1, le=len(PRIMES))
    buckets: PositiveInt = 4096

    @model_validator(mode="after")
    def _rising(self) -> Ngrams:
        if list(self.sizes) != sorted(set(self.sizes)):
            raise ValueError("sizes: give each once, the smallest first")
        return self


class BLT(PatchConfig):
    """encoder: blocks before the patches. patching: where patches end. ngrams: hash embeddings, or
    null for none. heads: of the cross-attention. slots: parts of a patch that its bytes read.
    """

    kind: Literal["blt"] = "blt"
    encoder: Stack
    patching: Entropy = Entropy()
    ngrams: Ngrams | None = Ngrams()
    heads: PositiveInt = 4
    slots: PositiveInt = 2

    @model_validator(mode="after")
    def _divides(self) -> BLT:
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide width={self.width}")
        if self.latent.width % self.slots:
            raise ValueError(f"slots: {self.slots} does not divide latent.width")
        small = self.patching.model
        if small is not None and small.vocabulary != self.vocabulary:
            raise ValueError(
                f"patching.model: its vocabulary of {small.vocabulary} differs from that of the "
                f"model, {self.vocabulary}; both read the same bytes and special tokens"
            )
        if small is not None and small.context < self.context:
            raise ValueError(
                f"patching.model: its context of {small.context} bytes is shorter than that of "
                f"the model, {self.context}"
            )
        return self

    @property
    def reader(self) -> Stack:
        return self.encoder

    def bridge(self) -> BLTBridge:
        return BLTBridge(self)


class BLTBridge(Bridge):
    """patcher: decides where patches end. ngrams: None if there are none."""

    def __init__(self, config: BLT) -> None:
        super().__init__()
        if config.patching.model is None:
            raise SettingError(
                "model.patching.model: entropies need the settings of a small model of bytes, "
                "which a run reads from model.patching.path"
            )
        width, latent, heads = config.width, config.latent.width, config.heads
        self.bytes_per_patch = config.patching.bytes_per_patch
        self._byte, self.width = width, 2 * width * config.slots
        self.patcher = EntropyPatcher(config.patching, config.patching.model)
        given = config.ngrams
        self.ngrams = (
            None
            if given is None
            else NgramEmbedding(given.sizes, given.functions, given.buckets, width)
        )
        self.pool = BytesToPatches(width, latent, heads, config.norm)
        self.unpool = PatchesToBytes(width, latent, config.slots, heads, config.norm)

    @property
    def kept(self) -> Kept:
        number, real = ((), torch.int64), ((), torch.float32)
        entropy = {"entropy": real} if self.patcher.config.monotonic else {}
        return {"natural": number, "end": number, "keys": ((3 * self._byte,), None), **entropy}

    @property
    def model(self) -> Transformer:
        return self.patcher.model

    def embedded(self, x: Tensor, reading: Reading) -> Tensor:
        if self.ngrams is None:
            return x
        return (x + self.ngrams(reading).to(x.dtype)) / (len(self.ngrams.sizes) + 1)

    def ends(self, states: Tensor, reading: Reading) -> Ends:
        return self.patcher.ends(reading)

    def into(self, states: Tensor, patches: Patches, ends: Ends, reading: Reading) -> Tensor:
        assert ends.lengths is not None
        keys = reading.keep("keys", self.pool.keys(states))
        window, there = reading.window("keys", keys, patches, self.patcher.config.max_bytes)
        lengths = ends.lengths.gather(1, patches.columns)
        newest = torch.arange(window.shape[2] - 1, -1, -1, device=keys.device)
        return self.pool(window, there & (newest < lengths[..., None]))

    def outward(self, latent: Tensor, patches: Patches, ends: Ends, reading: Reading) -> Tensor:
        return self.unpool.keys(latent)

    def merged(
        self, states: Tensor, spread: Tensor, patches: Patches, ends: Ends, reading: Reading
    ) -> Tensor:
        return self.unpool(states, spread)
