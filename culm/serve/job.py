"""What clients ask of the engine's thread: ids to read, prompts to continue."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from culm.engine import scoring
from culm.engine.embedding import EmbeddedPart
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

    def interruptible(self, part: Ranked) -> bool:
        """Whether other ids may be read after this part: a cache of their own would be one more."""
        return False

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

    def steps(self, engine: Engine) -> Iterator[EmbeddedPart]:
        return engine.embed_in_steps(self.texts, self.adapter)

    def interruptible(self, part: EmbeddedPart) -> bool:
        """Whether other ids may be read after this part: no text is in the middle."""
        return bool(part.vectors)

    def joined(self, parts: Sequence[EmbeddedPart]) -> Tensor:
        """(texts, width). Raises NotFinite where the model gave NaN."""
        vectors = {index: vector for part in parts for index, vector in part.vectors.items()}
        found = torch.stack([vectors[index] for index in range(len(self.texts))]).cpu()
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
