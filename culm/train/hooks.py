"""Hooks: small functions that are called with the facts of a step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from culm.files import read_lines, write_lines
from culm.log import Bar
from culm.train.trainer import Hook, Step


def every(steps: int, hook: Hook) -> Hook:
    """Call `hook` each so many steps."""

    def call(step: Step) -> None:
        if step.number % steps == 0:
            hook(step)

    return call


def show(bar: Bar) -> Hook:
    """Move a progress bar on, by steps, with the reward where there is one, else the loss."""

    def call(step: Step) -> None:
        label, value = "loss", step.loss
        if "reward" in step.metrics:
            label, value = "reward", step.metrics["reward"]
        bar.advance(1, f"{label} {value:.3f}")

    return call


class MetricsFile:
    """One JSON object a line and step: step, loss, tokens, seconds, rate, grad_norm, metrics.

    See `Step` for what they mean. A step that is trained again, because the run went on from an
    earlier checkpoint, has one line all the same.
    """

    def __init__(self, path: Path, step: int) -> None:
        """Go on after `step`: lines of later steps are dropped."""
        self.path = path
        write_lines(path, [line for line in read_lines(path) if line["step"] <= step])

    def __call__(self, step: Step) -> None:
        line = {
            "step": step.number,
            "loss": step.loss,
            "tokens": step.tokens,
            "seconds": round(step.seconds, 6),
            "rate": step.rate,
            "grad_norm": step.grad_norm,
            **step.metrics,
        }
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise OSError(
                f"{self.path}: could not be written ({error.strerror}); make room there and start "
                "the same command again: it goes on from the last checkpoint"
            ) from error


def checkpointing(save: Callable[[int, int], None], every_steps: int | None) -> Hook:
    """Save after the step that is the last or stops the run; each so many steps where asked.

    The last hook of all: what the others wrote of a step must stand before its checkpoint does.
    """

    def call(step: Step) -> None:
        if step.last or step.stopped or (every_steps and step.number % every_steps == 0):
            save(step.number, step.tokens)

    return call
