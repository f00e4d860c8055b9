"""Masked diffusion: tokens are masked at random, and the model fills them in from both sides
(MDLM, arXiv 2406.07524; LLaDA, arXiv 2502.09992).

    level t uniform in (0, 1), for each row
    every learned token is masked with probability t
    loss = 1 / t * sum of -log p(token | what is left)      over the masked tokens

Its mean over t and masks is an upper bound of -log p of the row. Departures: the levels of a step
are spread evenly (one random offset, as in the code of MDLM), and a packed row has one level.

Levels and masks depend on the seed, the step and the place of a row in it, so any number of ranks
learns from the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from culm.batch import IGNORED, Batch, Loss, Reads, Term, counts_of
from culm.model.context import Context
from culm.model.transformer import Transformer
from culm.objective.objective import Load, Objective, ObjectiveConfig
from culm.parallel.ranks import Ranks
from culm.seed import keyed, keyed_integer

LEAST = 1e-3  # level: the weight 1 / t has a bound


class MaskedDiffusion(ObjectiveConfig):
    """Upper bound of the negative log-likelihood of every learned token, in nats."""

    reads: ClassVar[Reads] = "documents"
    fills_masks: ClassVar[bool] = True
    columns: ClassVar[Mapping[str, Literal["row", "token"]]] = {"level": "row", "chance": "token"}
    kind: Literal["masked_diffusion"] = "masked_diffusion"

    def build(self, model: Transformer, load: Load, seed: int) -> MaskedDiffusionObjective:
        return MaskedDiffusionObjective(model.train(), seed)


class MaskedDiffusionObjective(Objective):
    """Sum of -log p of masked tokens, each divided by the level of its row."""

    def __init__(self, model: Transformer, seed: int) -> None:
        super().__init__(model)
        self.seed = seed

    def prepare_step(self, batches: list[Batch], number: int, ranks: Ranks) -> list[Batch]:
        """With `level` (B,) and `chance` (B, T), by which tokens are masked; without the last
        target of a row, which is no token of the row.
        """
        rows = sum(len(batch.tokens) for batch in batches)
        place, offset = ranks.rank * rows, keyed(self.seed, "level", number).random()
        prepared = []
        for batch in map(within_rows, batches):
            places = range(place, place + len(batch.tokens))
            levels = [max((at + offset) / (rows * ranks.count), LEAST) for at in places]
            chances = [self._chances(number, at, batch.tokens.shape[1]) for at in places]
            extra = {"level": torch.tensor(levels), "chance": torch.stack(chances)}
            prepared.append(replace(batch, extra={**batch.extra, **extra}))
            place += len(batch.tokens)
        return prepared

    def _chances(self, number: int, place: int, length: int) -> Tensor:
        generator = torch.Generator().manual_seed(keyed_integer(self.seed, "mask", number, place))
        return torch.rand(length, generator=generator)

    def loss(self, batch: Batch, context: Context) -> Loss:
        levels, chance = batch.extra["level"], batch.extra["chance"]
        bounds = masked_logprobs(self.model, batch, context, levels, chance)
        return Loss({"nll": Term(-bounds.sum(), "targets")})


def within_rows(batch: Batch) -> Batch:
    """The same without the last target of each row, which is no token of the row."""
    targets = batch.targets.clone()
    targets[:, -1] = IGNORED
    counts = counts_of(targets, batch.lengths)
    return replace(batch, targets=targets, counts={**batch.counts, **counts})


def masked_logprobs(
    model: Transformer, batch: Batch, context: Context, levels: Tensor, chance: Tensor
) -> Tensor:
    """(B, T) fp32: log-probability of each target, divided by the level of its row where it was
    masked, else 0. Its mean over levels and masks is a lower bound of the row's log-probability.

    The last target of a row is no token of the row, and has 0.

    levels: (B,). chance: (B, T) uniform random numbers: a token is masked if its own is below the
    level.
    """
    learned = torch.zeros_like(batch.targets, dtype=torch.bool)
    learned[:, 1:] = batch.targets[:, :-1] != IGNORED
    masked = learned & (chance < levels[:, None])
    mask_id = model.config.mask_id
    tokens = batch.tokens.masked_fill(masked, mask_id)
    wanted = batch.tokens.masked_fill(~masked, IGNORED)
    found = model.logprobs(tokens, wanted, context, vocabulary=mask_id) / levels[:, None]
    return torch.cat((found[:, 1:], torch.zeros_like(found[:, :1])), 1)


@torch.no_grad()
def bound(model: Transformer, batch: Batch, levels: int, seed: int) -> Tensor:
    """(B, T) fp32: the mean of `masked_logprobs` over this many levels, at equal distances.

    seed: of the masks.
    """
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(batch.tokens.shape, device=batch.tokens.device)
    context = Context(batch.positions, batch.documents, padding=batch.padding)
    for number in range(levels):
        chance = torch.rand(batch.tokens.shape, generator=generator).to(total.device)
        at = torch.full((len(total),), (number + 0.5) / levels, device=total.device)
        total += masked_logprobs(model, batch, context, at, chance)
    return total / levels
