"""A rollout as an objective sees it: all completions of this rank, with what they earned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from culm.batch import Batch
from culm.parallel.ranks import Ranks

ROUND = 16  # rows are padded to a multiple, so that memory is reused from step to step


@dataclass(frozen=True)
class Experience:
    """N prompts with G completions each, those of a prompt next to each other.

    batch: (N * G, T) rows of prompt and completion; the completion's tokens are the targets.
    rewards: (N * G,) fp32, nan where a completion could not be scored: then it has no targets.
    behaviour: (N * G, T) fp32, log-probabilities of the targets under the policy that sampled
        them, as the engine computed them; 0 where there is no target.
    group: G. max_tokens: the limit of a completion. updates: optimizer steps that learn from this
        rollout; after the first one, the policy is no longer the one that sampled.
    micro_batch_size: rows of a forward. ranks: those that hold the rest of the rollout.
    """

    batch: Batch
    rewards: Tensor
    behaviour: Tensor
    group: int = 1
    max_tokens: int = 1
    updates: int = 1
    micro_batch_size: int = 32
    device: torch.device | str = "cpu"
    ranks: Ranks = Ranks()  # noqa: RUF009 - frozen

    @property
    def learned(self) -> Tensor:
        """(N * G, T) bool, where there is a target."""
        return self.batch.targets >= 0

    @property
    def scored(self) -> Tensor:
        """(N * G,) bool, the completions that are learned from."""
        return self.learned.any(1)

    @torch.no_grad()
    def compute(self, forward: Callable[[Batch], Tensor]) -> Tensor:
        """What a model says about every row, in micro-batches, on the CPU: (N * G, T) fp32.

        forward: gives (B, t) for the first t columns of some rows. Every rank makes the same
        number of calls, as sharded models need.
        """
        size = self.batch.tokens.shape
        out = torch.zeros(size, dtype=torch.float32)
        for rows in torch.arange(size[0]).split(self.micro_batch_size):
            part = self.batch.select(rows, ROUND)
            found = forward(part.to(self.device))
            out[rows, : found.shape[1]] = found.float().cpu()
        return out

    def mean(self, values: Tensor, mask: Tensor) -> float:
        """The mean of some values over all ranks; mask: bool, of the same shape."""
        total, count = self.ranks.sum(
            [float(values[mask].double().sum()), float(mask.sum())], self.device
        )
        return total / max(count, 1.0)

    def whiten(
        self, values: Tensor, mask: Tensor, eps: float = 1e-8, centre: bool = True
    ) -> Tensor:
        """Values with mean 0 and standard deviation 1 (Bessel-corrected) over all ranks. centre:
        or else they are divided alone, and no value changes its sign.
        """
        mean = self.mean(values, mask)
        squares, count = self.ranks.sum(
            [float(((values[mask] - mean).double() ** 2).sum()), float(mask.sum())], self.device
        )
        variance = squares / max(count - 1.0, 1.0)
        return (values - mean * centre) * (variance + eps) ** -0.5 * mask
