"""Steps from which nothing is learned, said while a run trains and when it ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from culm import log
from culm.train.events import Event, Stepped

PATIENCE = 10  # such steps in a row before they are mentioned; then ten times as many
NOTHING = 1e-8  # a smaller gradient norm is rounding

NO_GRADIENT = "the gradient was zero"
EQUAL_ANSWERS = "the margin between chosen and rejected answers was exactly 0: are they the same?"
EQUAL_REWARDS = (
    "all completions of a prompt earned the same reward: use easier or harder questions, a larger "
    "train.rollout.group, or a start that is sometimes right"
)


def idle_reason(line: Mapping[str, Any]) -> str | None:
    """Why nothing was learned in a step, or None; line: as in `metrics.jsonl`."""
    if line.get("mixed_reward_groups") == 0:
        return EQUAL_REWARDS
    if line.get("margin") == 0:  # as it is before the first update of a policy, but not after it
        return EQUAL_ANSWERS
    return NO_GRADIENT if line["grad_norm"] < NOTHING else None


class IdleWatch:
    """Says so when many steps in a row learn nothing."""

    def __init__(self) -> None:
        self._row, self._patience = 0, PATIENCE

    def __call__(self, event: Event) -> None:
        if not isinstance(event, Stepped):
            return
        reason = idle_reason({"grad_norm": event.grad_norm, **event.metrics})
        self._row = self._row + 1 if reason else 0
        if reason and self._row == self._patience:
            self._patience *= 10
            log.say(f"Step {event.step}: nothing was learned in {self._row} steps, since {reason}")

    def close(self) -> None:
        """Nothing is buffered."""
