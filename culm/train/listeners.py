"""The listeners of every run: progress bar, files of metrics, evaluations, checkpoints."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from culm.files import json_text, read_lines, write_lines
from culm.log import Bar, say
from culm.train.events import (
    Event,
    Listener,
    Measured,
    Rewound,
    Stepped,
)


class Silent:
    """A listener with nothing to close."""

    def close(self) -> None:
        """Nothing is buffered."""


class ProgressBar(Silent):
    """Moves a bar by steps, with the reward if there is one, otherwise the loss."""

    def __init__(self, bar: Bar, step: int = 0) -> None:
        """Continue after `step`."""
        self._bar, self._step = bar, step

    def __call__(self, event: Event) -> None:
        if isinstance(event, Rewound):
            self._bar.advance(event.step - self._step)
        if isinstance(event, Stepped):
            self._step = event.step
            label, value = "loss", event.loss
            if "reward" in event.metrics:
                label, value = "reward", event.metrics["reward"]
            self._bar.advance(1, f"{label} {value:.3f}")


class MetricsFile:
    """One JSON object a line and step: step, loss, tokens, seconds, rate, grad_norm, the rate of
    each group, metrics.

    See `Stepped` for what they mean. A step that is trained again, because the run resumed from an
    earlier checkpoint, has one line all the same.
    """

    def __init__(self, path: Path, step: int) -> None:
        """Continue after `step`: lines of later steps are dropped."""
        self.path = path
        self._unwritten: list[str] = []
        self._drop_after(step)

    def _drop_after(self, step: int) -> None:
        write_lines(self.path, [line for line in read_lines(self.path) if line["step"] <= step])

    def __call__(self, event: Event) -> None:
        if isinstance(event, Rewound):
            self.close()
            self._drop_after(event.step)
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
            **({"skipped": event.skipped} if event.skipped else {}),
        }
        self._unwritten.append(json_text(line) + "\n")
        self._write()

    def _write(self) -> None:
        """Append what is not written yet; a full disk costs no step and, once it has room again, no
        line.
        """
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(self._unwritten))
        except OSError as error:
            with suppress(OSError):  # half a line
                os.truncate(self.path, size)
            if len(self._unwritten) == 1:
                say(
                    f"{self.path}: could not be written ({error.strerror}); the run continues, and "
                    "tries again after each step."
                )
            return
        self._unwritten.clear()

    def close(self) -> None:
        if self._unwritten:
            self._write()


class EvaluationFile(Silent):
    """One JSON object a line and evaluation: its step and its results."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._unwritten: list[dict[str, Any]] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, Measured) and event.results:
            # A run that resumed from an earlier step measures again what it had found later.
            earlier = [line for line in read_lines(self.path) if line["step"] < event.step]
            known = {line["step"] for line in earlier}
            late = [line for line in self._unwritten if line["step"] not in known]
            lines = [*earlier, *late, {"step": event.step, **event.results}]
            try:
                write_lines(self.path, lines)
            except OSError as error:
                self._unwritten.append(lines[-1])
                say(f"{error}; the run continues, and tries again after the next evaluation.")
                return
            self._unwritten.clear()


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


class Forgiving:
    """A tracker whose errors cost what it shows, and not the run."""

    def __init__(self, tracker: Listener, name: str) -> None:
        self._tracker, self._name = tracker, name
        self._gave_up = False

    def __call__(self, event: Event) -> None:
        self._try(lambda: self._tracker(event))

    def close(self) -> None:
        self._try(self._tracker.close)

    def _try(self, work: Callable[[], None]) -> None:
        if self._gave_up:
            return
        try:
            work()
        except Exception as error:  # whatever a library or a server raises
            self._gave_up = True
            say(f"train.trackers: {self._name} failed and gets no more of this run: {error}")


def is_due(step: int, every_steps: int | None) -> bool:
    """Whether something happens after a step."""
    return every_steps is not None and step % every_steps == 0
