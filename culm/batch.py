"""What the loop carries: a batch that knows its weight, and the loss that an objective gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

IGNORED = -100  # a target that is not learned, as in torch.nn.functional.cross_entropy


@dataclass(frozen=True)
class Batch:
    """Rows of tokens with what is to be learned from them.

    tokens, targets: (B, T) int64; `targets[b, t]` follows `tokens[b, t]`, or is IGNORED.
    positions: (B, T) int64, restarting at 0 with each document.
    documents: (B, T) int32, which document of its row a token belongs to; None: one a row.
    weight: the number of loss units (learned tokens, or pairs) that the loss is divided by.
    size: tokens that are read, padding not among them: what speed is measured in.
    lengths: (B,) int64, tokens of each row; what follows is padding. None: all of them.
    extra: what one objective needs beside, each with B as its first axis.
    metrics: numbers known before the forward (mean reward), passed through to the log.
    """

    tokens: Tensor
    targets: Tensor
    positions: Tensor
    documents: Tensor | None = None
    weight: int = 0
    size: int = 0
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    lengths: Tensor | None = None

    @property
    def padding(self) -> Tensor | None:
        """(B, T) bool, where a row is only filled up."""
        if self.lengths is None:
            return None
        return (
            torch.arange(self.tokens.shape[1], device=self.tokens.device) >= self.lengths[:, None]
        )

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        return replace(
            self,
            tokens=self.tokens.to(device),
            targets=self.targets.to(device),
            positions=self.positions.to(device),
            documents=None if self.documents is None else self.documents.to(device),
            lengths=None if self.lengths is None else self.lengths.to(device),
            extra={name: value.to(device) for name, value in self.extra.items()},
        )


@dataclass(frozen=True)
class Loss:
    """A sum over the loss units of a batch, with metrics that are sums too.

    The loop divides both by the weight of the whole step, once, over micro-batches and ranks.

    auxiliary: what is minimised beside it, as a sum over the tokens that are read; it is divided by
    their number in the whole step. counts: (n,) each, added up over the step and not divided, for
    those who work between its last micro-batch and its update.
    """

    total: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    auxiliary: Tensor | None = None
    counts: tuple[Tensor, ...] = ()

    def mean(self, weight: float, tokens: float) -> Tensor:
        """What a step of this weight and so many tokens minimises of it."""
        mean = self.total / weight
        return mean if self.auxiliary is None else mean + self.auxiliary / tokens
