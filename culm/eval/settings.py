"""The `eval` section of a run."""

from __future__ import annotations

from pydantic import NonNegativeInt, PositiveInt

from culm.config import Config
from culm.task import Tasks


class EvalConfig(Config):
    """What is measured at the end of a run, and each `every_steps` where given.

    tokens: of held-out text that are scored. tasks, questions: exact match on so many different
    test questions of each, or on all where it has fewer. max_tokens: the greatest length of an
    answer. samples: texts that are continued, at each of the temperatures.
    """

    every_steps: PositiveInt | None = None
    tokens: PositiveInt = 100_000
    tasks: Tasks = ()
    questions: PositiveInt = 100
    max_tokens: PositiveInt = 32
    samples: tuple[str, ...] = ()
    sample_tokens: PositiveInt = 64
    temperatures: tuple[float, ...] = (0.8,)
    seed: NonNegativeInt = 1
