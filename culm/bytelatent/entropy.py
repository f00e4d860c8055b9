"""Patches that end where the next byte is hard to predict (BLT, arXiv 2412.09871).

A small model of bytes, trained before and frozen, gives the entropy H_t of the byte after t. A
patch ends with byte t if H_t exceeds a threshold, or if it rises by more than that (`monotonic`),
or if the patch has `max_bytes`. In the paper the context of the small model starts again at
line breaks; here it is that of the document.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor

from culm.bytelatent.bridge import Ends
from culm.bytelatent.reading import Reading
from culm.config import Config
from culm.model.context import Context
from culm.model.init import CustomInit
from culm.model.precision import FullPrecision
from culm.model.transformer import Transformer, TransformerConfig


class Entropy(Config):
    """path: a run or model folder of the small model, read when a run starts; the weights are then
    stored with the model.
    model: its settings, which the run fills in.
    threshold: in nats; if not given, the run takes the quantile of its text that gives patches of
        the size `bytes_per_patch`.
    bytes_per_patch: this size, on average.
    monotonic: compare the increase of the entropy from byte to byte, not the entropy itself.
    max_bytes: of a patch.
    """

    path: str | None = Field(default=None, min_length=1)
    model: TransformerConfig | None = None
    threshold: PositiveFloat | None = None
    bytes_per_patch: float = Field(default=4.5, gt=1)
    monotonic: bool = False
    max_bytes: int = Field(default=16, ge=2)

    @model_validator(mode="after")
    def _reachable(self) -> Entropy:
        if self.bytes_per_patch > self.max_bytes:
            raise ValueError(
                f"bytes_per_patch: patches of {self.bytes_per_patch:g} bytes on average are longer "
                f"than max_bytes={self.max_bytes}; lower it, or raise max_bytes"
            )
        return self


class EntropyPatcher(FullPrecision, CustomInit):
    """The small model, frozen, and the threshold, which is stored with the weights."""

    def __init__(self, config: Entropy, model: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        # Its head is stored on its own, as a model within another one is not tied again.
        untied = model.model_copy(update={"tied": False})
        self.model = Transformer(untied).requires_grad_(False)
        self.register_buffer("threshold", torch.empty(()))
        self.threshold: Tensor

    def init_weights(self, generator: Callable[[str], torch.Generator], std: float) -> None:
        # Without one, only the maximum length ends a patch.
        self.threshold.fill_(self.config.threshold or float("inf"))

    def train(self, mode: bool = True) -> Self:
        """Frozen: the small model has no dropout in training either."""
        super().train(mode)
        self.model.eval()
        return self

    @torch.no_grad()
    def entropies(self, tokens: Tensor, context: Context | None = None) -> Tensor:
        """(B, T) fp32, in nats: of the byte after each."""
        logprobs = self.model(tokens, context).log_softmax(-1)
        return -(logprobs.exp() * logprobs).sum(-1)

    def measure(self, reading: Reading) -> Tensor:
        """(B, T) what is compared with the threshold."""
        found = self.entropies(reading.tokens, reading.own)
        if not self.config.monotonic:
            return found
        before = reading.before("entropy", reading.keep("entropy", found))
        return found - before

    def ends(self, reading: Reading) -> Ends:
        """Where patches end, and their lengths."""
        natural = (self.measure(reading) > self.threshold) | (reading.known == 0)
        since, _ = reading.last("natural", natural)
        at = natural | ((since > 0) & (since % self.config.max_bytes == 0))
        _, lengths = reading.last("end", at)
        return Ends(at, lengths)

    @torch.no_grad()
    def fit(self, tokens: Tensor) -> float:
        """Set the threshold that gives patches of `bytes_per_patch` bytes in these rows (B, T), or
        as many as the maximum length allows. Returns the bytes of a patch.

        It lies between two values that occur, so that rounding decides nothing there. It is found
        by bisection, since the maximum length ends some patches earlier.
        """
        reading = Reading(tokens, Context.plain(tokens))
        values = self.measure(reading).unique()
        low, high = 0, len(values) - 1
        while high - low > 1:
            middle = (low + high) // 2
            longer = self._size(reading, values, middle) > self.config.bytes_per_patch
            low, high = (low, middle) if longer else (middle, high)
        return self._size(reading, values, low)

    def _size(self, reading: Reading, values: Tensor, index: int) -> float:
        """Bytes of a patch with the threshold between two of the sorted values."""
        self.threshold.copy_(values[index : index + 2].mean())
        return reading.tokens.numel() / float(self.ends(reading).at.sum())
