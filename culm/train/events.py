"""What happens in a run, as facts; progress bars, files, trackers and checkpoints listen.

Listeners see these facts and not the trainer, so that they cannot change what is trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Stepped:
    """After a step.

    step: how many are finished; steps: of the run. loss: what was minimised. metrics: the mean of
    each term of the loss and of each metric, over its own count of the whole step. grad_norm:
    before clipping. rates: learning rate of each group of parameters, by name. tokens: read since
    the start of the run, padding excluded. seconds: from asking for the data of this step to its
    update, without listeners. last: of the run. stopped: the run was asked to stop.
    skipped: why its update was left out, if it was.
    """

    step: int
    steps: int
    loss: float
    grad_norm: float
    rates: Mapping[str, float]
    tokens: int
    seconds: float
    metrics: Mapping[str, float]
    last: bool = False
    stopped: bool = False
    skipped: str | None = None

    @property
    def rate(self) -> float:
        """Of the first group."""
        return next(iter(self.rates.values()))

    @property
    def group_rates(self) -> dict[str, float]:
        """Of each group, by the name of the metric."""
        return {f"rate.{name}": rate for name, rate in self.rates.items()}


@dataclass(frozen=True)
class Measured:
    """After an evaluation. results: as the measures name them."""

    step: int
    results: Mapping[str, Any]


@dataclass(frozen=True)
class Saved:
    """A checkpoint is on the disk."""

    step: int
    folder: Path


@dataclass(frozen=True)
class NotSaved:
    """A checkpoint could not be written; the run continues. step: at which that was noticed."""

    step: int
    reason: str


@dataclass(frozen=True)
class Ended:
    """The run ended. finished: after its last step; otherwise the same command resumes it.

    model: the folder of the final model, if there is one.
    """

    step: int
    finished: bool
    results: Mapping[str, Any]
    model: Path | None = None


@dataclass(frozen=True)
class Failed:
    """The run ended with an error; the same command resumes it from its last checkpoint."""

    error: BaseException


@dataclass(frozen=True)
class Rewound:
    """The run went back: the next step is step + 1 again."""

    step: int
    reason: str


Event = Stepped | Measured | Saved | Ended | Failed | Rewound | NotSaved


class Listener(Protocol):
    def __call__(self, event: Event) -> None:
        """React to an event; ignore those of other kinds."""

    def close(self) -> None:
        """Called once, however the run ends: write what is buffered, wait for what runs."""


class Listeners:
    """Passes each event to all listeners in order; one of them may announce another event."""

    def __init__(self, listeners: Iterable[Listener] = ()) -> None:
        self._listeners = list(listeners)

    def add(self, listener: Listener) -> None:
        """The last one of all sees each event last."""
        self._listeners.append(listener)

    def __call__(self, event: Event) -> None:
        for listener in tuple(self._listeners):
            listener(event)

    @contextmanager
    def failure(self) -> Iterator[None]:
        """Announce an error that ends what is done within."""
        try:
            yield
        except BaseException as error:
            self(Failed(error))
            raise

    def close(self) -> None:
        """Close all, the last one first, even if one fails."""
        with ExitStack() as stack:
            for listener in self._listeners:
                stack.callback(listener.close)
