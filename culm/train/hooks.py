"""Hooks: small functions that are called with the facts of a step."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from culm.log import Bar
from culm.train.trainer import Hook, Step


def every(steps: int, hook: Hook, *, at_end: bool = True) -> Hook:
    """Call `hook` each so many steps, and after the last."""

    def call(step: Step) -> None:
        if step.number % steps == 0 or (at_end and step.last):
            hook(step)

    return call


def show(bar: Bar, label: str = "loss") -> Hook:
    """Move a progress bar on, by steps."""

    def call(step: Step) -> None:
        value = step.metrics.get(label, step.loss)
        bar.advance(1, f"{label} {value:.3f}")

    return call


class MetricsFile:
    """One JSON object a line and step: step, loss, tokens, seconds, rate, grad_norm, metrics."""

    def __init__(self, path: Path, step: int) -> None:
        """Go on after `step`: lines of later steps, which are trained again, are dropped."""
        kept = [line for line in _lines(path) if line["step"] <= step]
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(partial, path)
        self.file = path.open("a", buffering=1)

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
        self.file.write(json.dumps(line) + "\n")


def read_metrics(path: Path) -> list[dict]:
    """The lines of a metrics file, in order."""
    return _lines(path)


def _lines(path: Path) -> list[dict]:
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:  # the line that was being written when the machine stopped
            break
    return lines


def checkpointing(save: Callable[[int, int], None], every_steps: int | None) -> Hook:
    """Save after the last step, and each so many steps where asked."""

    def call(step: Step) -> None:
        if step.last or (every_steps and step.number % every_steps == 0):
            save(step.number, step.tokens)

    return call
