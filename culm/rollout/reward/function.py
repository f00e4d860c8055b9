"""A reward that is a function of a user's file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from culm.objective.objective import Load
from culm.rollout.reward.reward import Score
from culm.rollout.reward.user_code import UserCode, UserFunction
from culm.rollout.trajectory import Trajectory


class FunctionScore(UserCode):
    """What a function of a Python file returns: a number, or None where it cannot say.

    With a parameter `completion` it scores one: `score(prompt, completion, **fields)`. With
    `completions` it scores a list of them, as reward functions of TRL do: `score(prompts,
    completions, **columns)`. Further fields are those of the question, such as `answer`.
    """

    kind: Literal["function"] = "function"

    def build(self, load: Load, seed: int) -> Score:
        function = UserFunction(self.path, self.name)
        if "completions" in function.parameters:
            return lambda trajectories: self._together(function, trajectories)
        if "completion" in function.parameters:
            return lambda trajectories: [self._one(function, one) for one in trajectories]
        function.refuse("has neither a parameter 'completion' nor 'completions'")

    def _arguments(self, one: Trajectory) -> dict[str, Any]:
        return {
            "prompt": self.shown(one.prompt),
            "completion": self.shown(one.completion),
            "completion_ids": one.sampled_tokens,
        }

    def _one(self, function: UserFunction, one: Trajectory) -> float:
        given = self._arguments(one)
        found = function.number(function({**given, **_besides(one, given)}))
        return self._noted(found, one)

    def _together(self, function: UserFunction, trajectories: Sequence[Trajectory]) -> list[float]:
        if not trajectories:
            return []
        rows = [self._arguments(one) for one in trajectories]
        given = {
            "prompts": [row["prompt"] for row in rows],
            "completions": [row["completion"] for row in rows],
            "completion_ids": [row["completion_ids"] for row in rows],
        }
        fields = [_besides(one, given) for one in trajectories]
        names = dict.fromkeys(name for row in fields for name in row)
        columns = {name: [row.get(name) for row in fields] for name in names}
        found = function.numbers(function({**given, **columns}), len(rows))
        return [self._noted(x, one) for x, one in zip(found, trajectories, strict=True)]

    def _noted(self, found: float, one: Trajectory) -> float:
        if math.isnan(found):
            one.problem = f"{self.name} of {self.path} gave None or nan"
        return found


def _besides(one: Trajectory, given: dict[str, Any]) -> dict[str, Any]:
    """Fields of the question without those that would hide what the run gives."""
    return {name: value for name, value in one.episode.fields.items() if name not in given}
