"""What clients ask of the engine's thread: ids to read, prompts to continue."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from culm.engine import scoring
from culm.engine.engine import Engine
from culm.engine.request import Event, Request
from culm.engine.scoring import Ranked
from culm.serve.refusal import NotFinite, Refusal


@dataclass(frozen=True)
class Scoring:
    """Ids to score, each with the `ranks` most likely ones in its place."""

    ids: tuple[int, ...]
    ranks: int
    adapter: str | None = None

    def check(self, engine: Engine) -> None:
        """ValueError if the engine cannot score them."""
        scoring.check(engine.model, [self.ids], [self.adapter])

    def steps(self, engine: Engine) -> Iterator[Ranked]:
        return engine.rank_in_steps(self.ids, self.ranks, self.adapter)

    def joined(self, parts: Sequence[Ranked]) -> Ranked:
        """Raises NotFinite where the model gave NaN."""
        found = scoring.joined(parts)
        if found.logprobs.isnan().any() or found.values.isnan().any():
            raise NotFinite()
        return found


@dataclass(frozen=True)
class Embedding:
    """Texts that get a vector each, as ids."""

    texts: tuple[tuple[int, ...], ...]
    adapter: str | None = None

    def check(self, engine: Engine) -> None:
        """ValueError if the engine has no vectors for them."""
        scoring.check(engine.model, self.texts, [self.adapter] * len(self.texts))

    def steps(self, engine: Engine) -> Iterator[Tensor]:
        return (engine.embed(ids, self.adapter) for ids in self.texts)

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """(texts, width). Raises NotFinite where the model gave NaN."""
        found = torch.stack(list(parts))
        if not found.isfinite().all():
            raise NotFinite()
        return found


@dataclass(frozen=True)
class WorkerTask:
    """What counts as one request: ids to read, a prompt to continue, or first one, then the
    other."""

    reading: Scoring | Embedding | None = None
    request: Request | None = None


# What the thread gives: scores of a prompt, vectors (texts, width), or a token; with the index of
# the task in its job.
Found = Ranked | Tensor | Event
JobEvent = tuple[int, Found]


class Job:
    """Tasks of one client that share a queue of events."""

    def __init__(self, tasks: Sequence[WorkerTask]) -> None:
        self.tasks = tuple(tasks)
        self.open = {i for i, task in enumerate(tasks) if task.reading or task.request}
        self.numbers: dict[int, int] = {}  # request's number in the engine -> index
        self.queue: asyncio.Queue[JobEvent | Refusal] = asyncio.Queue()

    async def next(self) -> JobEvent:
        """The next event of any of the tasks; raises what went wrong."""
        item = await self.queue.get()
        if isinstance(item, Refusal):
            raise item
        return item
