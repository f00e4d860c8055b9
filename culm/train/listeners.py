"""The listeners of every run: progress bar, files of metrics, evaluations, checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from culm.endpoint import ServiceFailed
from culm.files import read_lines, write_lines
from culm.log import Bar, say
from culm.train.events import Event, Failed, Measured, Rewound, Saved, Stepped


class Silent:
    """A listener with nothing to close."""

    def close(self) -> None:
        """Nothing is buffered."""


class ProgressBar(Silent):
    """Moves a bar by steps, with the reward if there is one, otherwise the loss."""

    def __init__(self, bar: Bar) -> None:
        self._bar, self._step = bar, 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Rewound):
            self._bar.advance(event.step - self._step)
        if isinstance(event, Stepped):
            self._step = event.step
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
        self._drop_after(step)

    def _drop_after(self, step: int) -> None:
        write_lines(self.path, [line for line in read_lines(self.path) if line["step"] <= step])

    def __call__(self, event: Event) -> None:
        if isinstance(event, Rewound):
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
    before its checkpoint is. save(step, tokens, done): starts to write a checkpoint, after the one
    before is on the disk; `done` gets its folder. poll: whether nothing is being written; raises
    what went wrong. wait: the same, when all checkpoints are on the disk.
    """

    def __init__(
        self,
        save: Callable[[int, int, Callable[[Path], None]], None],
        poll: Callable[[], bool],
        wait: Callable[[], None],
        every_steps: int | None,
        announce: Callable[[Event], None],
    ) -> None:
        self._save, self._poll, self._wait = save, poll, wait
        self._every, self._announce = every_steps, announce
        self._unsaved: Stepped | None = None
        self._error: BaseException | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, Failed):
            self._error = event.error
            if self._unsaved is not None and isinstance(event.error, ServiceFailed):
                self._write(self._unsaved)
                self._wait()
        elif isinstance(event, Stepped):
            self._unsaved, free = event, self._poll()
            if event.last or event.stopped:
                self._write(event)
                self._wait()
            elif is_due(event.step, self._every) and free:
                self._write(event)
            elif is_due(event.step, self._every):
                say(
                    f"Step {event.step}: its checkpoint is left out, since the one before is still "
                    "being written."
                )

    def _write(self, event: Stepped) -> None:
        step, self._unsaved = event.step, None
        self._save(step, event.tokens, lambda path: self._announce(Saved(step, path)))

    def close(self) -> None:
        if self._error is None:
            self._wait()
        elif isinstance(self._error, Exception):  # a second Ctrl-C ends at once
            try:
                self._wait()
            except Exception as error:  # that which ended the run is raised
                say(f"The last checkpoint could not be written: {error}")


def is_due(step: int, every_steps: int | None) -> bool:
    """Whether something happens after a step."""
    return every_steps is not None and step % every_steps == 0
