"""Kahneman-Tversky optimisation (arXiv 2402.01306): from answers that are called good or bad."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from culm.batch import IGNORED, Batch, Loss, Reads, Term, counts_of
from culm.config import SettingError
from culm.model.context import Context
from culm.model.transformer import Transformer
from culm.objective.objective import Load, Objective, ObjectiveConfig
from culm.objective.policy import inference_context
from culm.objective.reference import frozen, reference_of
from culm.parallel.ranks import Ranks


class KTO(ObjectiveConfig):
    """beta: strength of the tie to the reference model.

    desirable, undesirable: weights of good and bad answers. Where one kind is rarer, the paper
    chooses them so that desirable * (good answers) is 1 to 4/3 of undesirable * (bad ones).
    """

    reads: ClassVar[Reads] = "labels"
    columns: ClassVar[Mapping[str, Literal["row", "token"]]] = {
        "label": "row", "divergence": "row",
    }  # fmt: skip
    kind: Literal["kto"] = "kto"
    beta: PositiveFloat = 0.1
    desirable: PositiveFloat = 1.0
    undesirable: PositiveFloat = 1.0

    def build(self, model: Transformer, load: Load, seed: int) -> KTOObjective:
        return KTOObjective(self, model.eval())  # no dropout: it would move the log-ratios


def kto_loss(ratio: Tensor, divergence: Tensor, good: Tensor, config: KTO) -> Tensor:
    """Loss of each answer. ratio: (N,) sums of log pi/ref. divergence: (N,), how far the policy is
    from the reference, in nats. good: (N,) bool.
    """
    gain = config.beta * (ratio - divergence)
    desirable = config.desirable * (-gain).sigmoid()
    return desirable.where(good, config.undesirable * gain.sigmoid())


class KTOObjective(Objective):
    """extra: the label of each answer, and the divergence of the step, the same in all rows."""

    def __init__(self, config: KTO, model: Transformer) -> None:
        super().__init__(model)
        self.config = config
        self.reference = reference_of(model)

    @property
    def calls_twice(self) -> bool:
        return self.reference is None

    def prepare_step(self, batches: list[Batch], number: int, ranks: Ranks) -> list[Batch]:
        """With the divergence: the mean log-ratio of answers to other questions than their own,
        over the whole step, or 0 if that is negative.

        Raises:
            SettingError: a label is not one of good and bad, or the step has one answer alone.
        """
        total, count = 0.0, 0
        for batch in mismatched(batches, self.model.config.context, ranks):
            part = batch.to(self.model.device)
            with torch.no_grad():
                ratio = self._ratio(part, inference_context(part))
            total, count = total + float(ratio.double().sum()), count + len(ratio)
        total, everything = ranks.sum([total, float(count)], self.model.device)
        if everything < 2:
            raise SettingError(
                "train.batch_size: kto compares the answers of a step; give at least 2, with a "
                "train.batch_ramp from its start on"
            )
        return [self._with(batch, max(total / everything, 0.0)) for batch in batches]

    def _with(self, batch: Batch, divergence: float) -> Batch:
        good = _good(batch.extra["label"])
        desirable = float(good.sum())
        counts = {"desirable": desirable, "undesirable": len(good) - desirable}
        return replace(
            batch,
            counts={**batch.counts, **counts},
            extra={**batch.extra, "divergence": torch.full((len(good),), divergence)},
            metrics={**batch.metrics, "kl": divergence},
        )

    def _ratio(self, batch: Batch, context: Context) -> Tensor:
        policy = self.model.logprobs(batch.tokens, batch.targets, context)
        with frozen(self.model, self.reference) as reference:
            plain = context.unrecorded()
            fixed = reference.logprobs(batch.tokens, batch.targets, plain)
        return (policy - fixed).sum(-1)

    def loss(self, batch: Batch, context: Context) -> Loss:
        ratio, good = self._ratio(batch, context), batch.extra["label"] > 0
        losses = kto_loss(ratio, batch.extra["divergence"], good, self.config)
        rewards = self.config.beta * ratio.detach()
        return Loss(
            {"kto": Term(losses.sum(), "rows")},
            {
                "reward_desirable": Term((rewards * good).sum(), "desirable"),
                "reward_undesirable": Term((rewards * ~good).sum(), "undesirable"),
            },
        )


def _good(labels: Tensor) -> Tensor:
    """(B,) bool."""
    for label in labels.tolist():
        if label not in (0, 1, -1):
            raise SettingError(
                f"data.format.label: kto learns from true and false, and found {label:g}"
            )
    return labels > 0


def mismatched(batches: Sequence[Batch], context: int, ranks: Ranks) -> list[Batch]:
    """The same prompts, each with the answer of the row before it in the step, in micro-batches of
    the same sizes; cut to `context` tokens.
    """
    rows = [row for batch in batches for row in _rows(batch)]
    last = ranks.gather(rows[-1])[ranks.rank - 1]  # of the rank before this one
    before = [last, *rows[:-1]]
    mixed = (_mixed(*both, context) for both in zip(rows, before, strict=True))
    return [_batch([next(mixed) for _ in batch.tokens]) for batch in batches]


def _rows(batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens and targets without padding."""
    for tokens, targets, last in zip(batch.tokens, batch.targets, batch.last.tolist(), strict=True):
        yield tokens[: last + 1], targets[: last + 1]


def _mixed(
    asked: tuple[Tensor, Tensor], answered: tuple[Tensor, Tensor], context: int
) -> tuple[Tensor, Tensor]:
    """The prompt of one row with the answer of another: its tokens and targets."""
    (prompt, learned), (answer, targets) = asked, answered
    end, start = (int((one >= 0).nonzero()[0]) for one in (learned, targets))
    tokens = torch.cat([prompt[: end + 1], answer[start + 1 :]])
    wanted = torch.cat([torch.full((end,), IGNORED), targets[start:]])
    return tokens[:context], wanted[:context]


def _batch(rows: Sequence[tuple[Tensor, Tensor]]) -> Batch:
    tokens = pad_sequence([tokens for tokens, _ in rows], batch_first=True)
    targets = pad_sequence(
        [targets for _, targets in rows], batch_first=True, padding_value=IGNORED
    )
    lengths = torch.tensor([len(tokens) for tokens, _ in rows])
    positions = torch.arange(tokens.shape[1]).expand(tokens.shape)
    return Batch(tokens, targets, positions, lengths=lengths, counts=counts_of(targets, lengths))
