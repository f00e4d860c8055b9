"""A bonus for the form of an answer."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import PositiveFloat, field_validator

from culm.objective.objective import Load
from culm.rollout.reward.reward import RewardConfig, Score


class FormatBonus(RewardConfig):
    """pattern: a regular expression that the whole last reply must match; `.` also matches the end
    of a line. bonus: what it earns then, else 0; keep it below 0.2 of what a correct answer earns.
    """

    kind: Literal["format"] = "format"
    pattern: str
    bonus: PositiveFloat = 0.1

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"this is not a regular expression ({error})") from None
        return pattern

    def build(self, load: Load, seed: int) -> Score:
        form = re.compile(self.pattern, re.DOTALL)
        return lambda trajectories: [
            self.bonus * bool(form.fullmatch(one.messages[-1]["content"])) for one in trajectories
        ]
