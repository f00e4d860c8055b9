"""A small corpus and short training runs for lessons, on the library's own loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from culm.batch import Batch, counts_of
from culm.model.attention import Attention
from culm.model.attention.gqa import GQA
from culm.model.transformer import Transformer, TransformerConfig
from culm.objective.next_token import NextToken
from culm.objective.objective import Objective, ObjectiveConfig
from culm.optim.adamw import AdamW
from culm.optim.optimizer import OptimizerConfig
from culm.optim.schedule import Constant
from culm.parallel.parallelize import Parallel
from culm.train.events import Event, Stepped
from culm.train.rates import RateSchedule
from culm.train.trainer import Batches, Trainer
from culm.train.update import Update

MODULES = ("argparse", "textwrap", "json.decoder", "configparser", "csv", "shutil", "zipfile")
FEW = GQA(heads=4, qk_norm="head")


def text(modules: tuple[str, ...] = MODULES) -> str:
    """The source text of modules of Python's standard library: a corpus that every reader has."""
    found = [find_spec(name) for name in modules]
    paths = [Path(spec.origin) for spec in found if spec is not None and spec.origin]
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


def tokens(words: str) -> Tensor:
    """The bytes of a text, (T,) int64."""
    return torch.tensor(list(words.encode()))


def batch_of(rows: Tensor) -> Batch:
    """rows: (B, T + 1) -> a batch in which each token predicts the next one."""
    read, targets = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
    positions = torch.arange(read.shape[1]).expand(read.shape)
    return Batch(read, targets, positions, counts=counts_of(targets))


class Repeatable:
    """Data in which a step is a function of the seed and its number, so that nothing is stored."""

    fingerprint = "repeatable"

    def state(self, steps: int) -> dict[str, Tensor]:
        """Empty."""
        return {}

    def restore(self, steps: int, state: Mapping[str, Tensor]) -> None:
        """Nothing to restore."""


@dataclass(frozen=True)
class Windows(Repeatable):
    """Random windows of a stream, `rows` a step; step n is a function of the seed and n.

    stream: (N,) int64, of which the last tenth is held out. micro_rows: rows of a micro-batch, all
    if not given.
    """

    stream: Tensor
    context: int = 64
    rows: int = 16
    seed: int = 0
    micro_rows: int | None = None

    def step(self, number: int) -> list[Batch]:
        chance = torch.Generator().manual_seed(1_000_003 * self.seed + number)
        seen = len(self.stream) - self._held_out - self.context
        starts = torch.randint(seen, (self.rows,), generator=chance)
        rows = self._rows(starts)
        return [batch_of(part) for part in rows.split(self.micro_rows or self.rows)]

    @property
    def _held_out(self) -> int:
        return len(self.stream) // 10

    def _rows(self, starts: Tensor) -> Tensor:
        return self.stream[starts[:, None] + torch.arange(self.context + 1)]

    def held_out(self, rows: int) -> Batch:
        """Evenly spread windows of the text that is held out."""
        first, last = len(self.stream) - self._held_out, len(self.stream) - self.context - 1
        return batch_of(self._rows(torch.linspace(first, last, rows).long()))


def small(
    attention: Attention = FEW, width: int = 64, layers: int = 2, **more
) -> TransformerConfig:
    """A model of bytes that trains in seconds; more: of `TransformerConfig`."""
    return TransformerConfig(
        vocabulary=256, width=width, layers=layers, context=256, attention=(attention,), **more
    )


@dataclass
class Trained:
    """A model after training, and the facts of each step."""

    model: Transformer
    steps: list[Stepped] = field(default_factory=list)

    @property
    def losses(self) -> list[tuple[int, float]]:
        return [(one.step, one.loss) for one in self.steps]


def fit(
    objective: Objective,
    data: Batches,
    steps: int,
    rate: float = 3e-3,
    optimizer: OptimizerConfig | None = None,
    schedule: RateSchedule = Constant(warmup=0.05),
    clip: float | None = 1.0,
    seed: int = 0,
) -> list[Stepped]:
    """Train an objective by the library's loop (`culm.train.trainer`); gives the facts of each
    step.
    """
    seen: list[Stepped] = []

    def listen(event: Event) -> None:
        if isinstance(event, Stepped):
            seen.append(event)

    chosen = optimizer or AdamW(rate=rate)
    update = Update(Parallel(objective), chosen.build(objective), clip=clip, seed=seed)
    Trainer(update, schedule, listener=listen).fit(data, steps)
    return seen


def train(
    config: TransformerConfig | Transformer,
    data: Batches,
    steps: int,
    rate: float = 3e-3,
    objective: ObjectiveConfig = NextToken(),
    optimizer: OptimizerConfig | None = None,
    schedule: RateSchedule = Constant(warmup=0.05),
    clip: float | None = 1.0,
    seed: int = 0,
) -> Trained:
    """Train a model, new or given, by the library's loop."""
    model = config if isinstance(config, Transformer) else config.build(seed)
    built = objective.build(model, no_other_model, seed)
    done = fit(built, data, steps, rate, optimizer, schedule, clip, seed)
    model.eval()
    return Trained(model, done)


@torch.no_grad()
def held_out_loss(model: Transformer, data: Windows, rows: int = 128) -> float:
    """Mean loss in nats per token on text that `data` never gives in training."""
    batch = data.held_out(rows)
    return -float(model.logprobs(batch.tokens, batch.targets).sum()) / batch.counts["targets"]


def no_other_model(setting: str, path: str) -> Transformer:
    """For objectives that load none."""
    raise AssertionError(f"{path} is loaded")
