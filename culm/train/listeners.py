"""The listeners of every run: progress bar, files of metrics, evaluations, checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from culm.endpoint import ServiceFailed
from culm.files import read_lines, write_lines
from culm.log import Bar
from culm.train.events import Event, Failed, Measured, Saved, Stepped


class Silent:
    """A listener with nothing to close."""

    def close(self) -> None:
        """Nothing is buffered."""


class ProgressBar(Silent):
    """Moves a bar by steps, with the reward if there is one, otherwise the loss."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar

    def __call__(self, event: Event) -> None:
        if isinstance(event, Stepped):
            label, value = "loss", event.loss
            if "reward" in event.metrics:
                label, value = "reward", event.metrics["reward"]
            self._bar.advance(1, f"{label} {value:.3f}")


class MetricsFile(Silent):
    """One JSON object a line and step: step, loss, tokens, seconds, rate, grad_norm, the rate of
    each group, metrics.

    See `Stepped` for what they mean. A step that is trained again, because the run resumed from an
    earlier checkpoint, has one line all the same.
    """

    def __init__(self, path: Path, step: int) -> None:
        """Continue after `step`: lines of later steps are dropped."""
        self.path = path
        write_lines(path, [line for line in read_lines(path) if line["step"] <= step])

    def __call__(self, event: Event) -> None:
        if not isinstance(event, Stepped):
            return
        line = {
            "step": event.step,
            "loss": event.loss,
            "tokens": event.tokens,
            "seconds": round(event.seconds, 6),
            "rate": event.rate,
            "grad_norm": event.grad_norm,
            **event.group_rates,
            **event.metrics,
        }
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise OSError(
                f"{self.path}: could not be written ({error.strerror}); make room there and start "
                "the same command again: it resumes from the last checkpoint"
            ) from error


class EvaluationFile(Silent):
    """One JSON object a line and evaluation: its step and its results."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, event: Event) -> None:
        if isinstance(event, Measured) and event.results:
            # A run that resumed from an earlier step measures again what it had found later.
            earlier = [line for line in read_lines(self.path) if line["step"] < event.step]
            write_lines(self.path, [*earlier, {"step": event.step, **event.results}])


class Evaluations(Silent):
    """Evaluates every `every_steps` steps and announces the results; every rank takes part.

    Comes after the checkpoints: whatever happens to an evaluation, the step is saved, if its
    checkpoint is due. saved: returns when all checkpoints are on the disk. A run that is asked to
    stop does not evaluate first. What follows the last step is measured by the run itself.
    """

    def __init__(
        self,
        evaluate: Callable[[], Mapping[str, Any]],
        every_steps: int | None,
        announce: Callable[[Event], None],
        saved: Callable[[], None],
    ) -> None:
        self._evaluate, self._every, self._announce = evaluate, every_steps, announce
        self._saved = saved

    def __call__(self, event: Event) -> None:
        if not isinstance(event, Stepped) or event.last or event.stopped:
            return
        if is_due(event.step, self._every):
            self._saved()
            self._announce(Measured(event.step, self._evaluate()))


class Checkpoints:
    """Saves every `every_steps` steps, after the last one, when the run is asked to stop, and when
    a service fails that it needs, such as the one that samples: all ranks then end together.

    Comes after the listeners that write files: what they wrote of a step must be on the disk
    before its checkpoint is. save(step, tokens, done): starts to write a checkpoint; `done` gets
    its folder when it is on the disk. wait: returns when all checkpoints are.
    """

    def __init__(
        self,
        save: Callable[[int, int, Callable[[Path], None]], None],
        wait: Callable[[], None],
        every_steps: int | None,
        announce: Callable[[Event], None],
    ) -> None:
        self._save, self._wait, self._every, self._announce = save, wait, every_steps, announce
        self._unsaved: Stepped | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, Failed):
            if self._unsaved is not None and isinstance(event.error, ServiceFailed):
                self._write(self._unsaved)
        elif isinstance(event, Stepped):
            self._unsaved = event
            if event.last or event.stopped or is_due(event.step, self._every):
                self._write(event)

    def _write(self, event: Stepped) -> None:
        step, self._unsaved = event.step, None
        self._save(step, event.tokens, lambda path: self._announce(Saved(step, path)))

    def close(self) -> None:
        self._wait()


def is_due(step: int, every_steps: int | None) -> bool:
    """Whether something happens after a step."""
    return every_steps is not None and step % every_steps == 0
