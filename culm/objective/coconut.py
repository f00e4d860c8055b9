"""Chain of continuous thought (Coconut, arXiv 2412.06769), and what it is compared with.

    stage 0   question <bot> <eot> step 1, step 2, step 3, answer
    stage 1   question <bot> h <eot>       step 2, step 3, answer
    stage 2   question <bot> h h <eot>             step 3, answer
    last      question <bot> h h h <eot>                   answer

The loss is that of the next token, on what follows <eot>.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from culm.batch import IGNORED, Batch, Loss, Reads, Term, counts_of
from culm.concept.thoughts import check_thinks, thinking_states
from culm.config import SettingError
from culm.model.context import Context
from culm.model.rule_updated import RuleUpdatedBuffers
from culm.model.transformer import Transformer
from culm.objective.objective import Load, Objective, ObjectiveConfig
from culm.parallel.ranks import Ranks

SPECIAL = 3  # rows of the embedding after those of the tokenizer: <bot>, <pause> and <eot>


class Coconut(ObjectiveConfig):
    """thoughts: what takes the place of steps. latent: states of the model; pause: a learned token
        (arXiv 2310.02226), as often; words: the steps themselves (chain of thought); none: nothing.
    latents_per_step: of each step that is replaced. stages: of the curriculum after stage 0, each
        of which replaces one step more, and the last one all. stage_steps: optimizer steps of one.
    reset_optimizer: at the start of each stage, as in the paper; otherwise its state goes on.

    The last 3 rows of the model's vocabulary are <bot>, <pause> and <eot>: it must have that many
    more than the tokenizer has tokens.
    """

    reads: ClassVar[Reads] = "thoughts"
    own_tokens: ClassVar[int] = SPECIAL
    kind: Literal["coconut"] = "coconut"
    thoughts: Literal["latent", "pause", "words", "none"] = "latent"
    latents_per_step: PositiveInt = 1
    stages: PositiveInt = 3
    stage_steps: PositiveInt = 300
    reset_optimizer: bool = False

    def build(self, model: Transformer, load: Load, seed: int) -> CoconutObjective:
        if self.thoughts == "latent":
            check_thinks(model)
        return CoconutObjective(self, model.train())

    @property
    def thinks(self) -> bool:
        """Whether something stands in place of steps."""
        return self.thoughts in ("latent", "pause")

    def stage(self, step: int) -> int:
        """Of an optimizer step, from 0."""
        if not self.thinks:
            return 0
        return min(step // self.stage_steps, self.stages)

    def replaced(self, stage: int) -> int | None:
        """How many steps are left out, the first ones first; None: all."""
        if self.thoughts == "none":
            return None
        return None if stage == self.stages else stage


class Clock(nn.Module, RuleUpdatedBuffers):
    """How many updates were made; checkpoints hold it."""

    rule_updated = ("steps",)
    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))


class CoconutObjective(Objective):
    """Sum of -log p(token) of what is written after the thoughts."""

    def __init__(self, config: Coconut, model: Transformer) -> None:
        super().__init__(model)
        self.config, self.clock = config, Clock()

    @property
    def calls_twice(self) -> bool:
        return self.config.thoughts == "latent"

    def resets_optimizer(self) -> bool:
        steps = int(self.clock.steps)
        begins = steps > 0 and self.config.stage(steps) != self.config.stage(steps - 1)
        return begins and self.config.reset_optimizer

    def before_update(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        stage = self.config.stage(int(self.clock.steps))
        self.clock.steps += 1
        return {**super().before_update(statistics), "stage": float(stage)}

    def prepare_step(self, batches: list[Batch], number: int, ranks: Ranks) -> list[Batch]:
        """The rows of the stage that the run is in."""
        stage = self.config.stage(int(self.clock.steps))
        return [
            staged(batch, self.config, stage, self.model.config.vocabulary) for batch in batches
        ]

    def loss(self, batch: Batch, context: Context) -> Loss:
        first, count = self._latents(batch)
        context = replace(context, padding=batch.extra.get("padding"), routings=None)
        hidden = thinking_states(self.model, batch.tokens, context, first, count)
        nll = -self.model.hidden_logprobs(hidden, batch.targets).sum()
        return Loss({"nll": Term(nll, "targets")})

    def _latents(self, batch: Batch) -> tuple[int, int]:
        """The column of the first one, and their number."""
        if self.config.thoughts != "latent":
            return 0, 0
        if "first" not in batch.extra:  # a plan, which makes up its rows: as many as there will be
            half = batch.tokens.shape[1] // 2
            return half, min(half, self.config.stages * self.config.latents_per_step)
        return int(batch.extra["first"][0]), int(batch.extra["count"][0])


def staged(batch: Batch, config: Coconut, stage: int, vocabulary: int) -> Batch:
    """Rows of a stage from rows of all parts (`culm.data.format.thoughts`).

    The thoughts begin in one column: questions are padded at their end. vocabulary: of the model.

    Raises:
        SettingError: a token is one of the last three of the model.
    """
    bot = vocabulary - SPECIAL
    if int(batch.tokens.max()) >= bot:
        raise SettingError(
            f"model.vocabulary: its last {SPECIAL} rows are for thoughts, and the tokenizer has "
            f"tokens up to {int(batch.tokens.max())}; give it {SPECIAL} more"
        )
    count = stage * config.latents_per_step if config.thinks else 0
    middle = [bot, *[bot + 1] * count, bot + 2] if config.thinks else []
    both = zip(batch.tokens, batch.targets, strict=True)
    rows = [_parts(tokens, targets) for tokens, targets in both]
    left = config.replaced(stage)
    written = []
    for _, steps, answer in rows:
        kept = [] if left is None else steps[left:]
        written.append([*(token for part in kept for token in part), *answer])
    return _laid_out([question for question, _, _ in rows], middle, written, batch, count)


def _parts(tokens: Tensor, targets: Tensor) -> tuple[list[int], list[list[int]], list[int]]:
    """Question, steps and answer of a row, whose last tokens are those that are learned."""
    ends = [0, *(at + 2 for at in (targets != IGNORED).nonzero()[:, 0].tolist())]
    every = tokens.tolist()
    parts = [every[start:end] for start, end in pairwise(ends)]
    return parts[0], parts[1:-1], parts[-1]


def _laid_out(
    questions: Sequence[list[int]], middle: list[int], written: Sequence[list[int]], batch: Batch,
    count: int,
) -> Batch:  # fmt: skip
    """padding, question, thoughts, what is written, padding; what is written is learned."""
    width = max(map(len, questions))
    length = width + len(middle) + max(map(len, written))
    shape = (len(questions), length)
    tokens, targets = torch.zeros(shape, dtype=torch.int64), torch.full(shape, IGNORED)
    positions, real = torch.zeros_like(tokens), torch.zeros(shape, dtype=torch.bool)
    for row, (question, said) in enumerate(zip(questions, written, strict=True)):
        own = [*question, *middle, *said]
        columns = torch.arange(len(own)) + width - len(question)
        tokens[row, columns] = torch.tensor(own)
        positions[row, columns], real[row, columns] = torch.arange(len(own)), True
        before = columns[len(own) - len(said) - 1 : -1]
        targets[row, before] = torch.tensor(said)
    counts = {**counts_of(targets), "tokens": float(real.sum())}
    extra = {
        "first": torch.full((len(questions),), width + 1), "padding": ~real,
        "count": torch.full((len(questions),), count),
    }  # fmt: skip
    return replace(
        batch, tokens=tokens, targets=targets, positions=positions, documents=(~real).int(),
        lengths=None, counts=counts, extra=extra,
    )  # fmt: skip
