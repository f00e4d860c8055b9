"""The settings of checkpoints."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from culm.config import Config


class CheckpointConfig(Config):
    """every_steps: optimizer steps between two checkpoints; one is saved at the end in any case.
    keep: how many of the newest stay. keep_every_steps: those of every so many steps stay too.
    form: whole: one rank gathers and writes all; sharded: each rank writes what it holds; auto:
        sharded if weights are sharded over ranks. A run may resume from either, on any layout.
    asynchronous: a copy is taken at the step and written while the run continues; a checkpoint that
        is due while the one before is still being written is left out.
    failures: how many in a row may fail to be written, as on a full disk, before the run ends.
    """

    every_steps: PositiveInt | None = None
    keep: PositiveInt = 2
    keep_every_steps: PositiveInt | None = None
    form: Literal["auto", "whole", "sharded"] = "auto"
    asynchronous: bool = False
    failures: NonNegativeInt = 2

    def most(self, steps: int) -> int:
        """How many there may be at once in a run of `steps` steps; one is being written."""
        lasting = 0 if self.keep_every_steps is None else steps // self.keep_every_steps
        return self.keep + 1 + lasting
