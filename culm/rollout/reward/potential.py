"""Potential-based shaping, which changes no optimal policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from culm.objective.objective import Load
from culm.rollout.reward.reward import Score
from culm.rollout.reward.user_code import UserCode, UserFunction
from culm.rollout.trajectory import Trajectory


class Potential(UserCode):
    """Minus the potential of the prompt, which a function of a Python file gives.

    Potential-based shaping (Ng et al., 1999) adds what the potential gains at each step. At the end
    it is 0, so these terms add up to minus the potential of the prompt: groups learn the same, and
    a critic has less to explain. The function is `potential(prompt, **fields)`.
    """

    kind: Literal["potential"] = "potential"

    def build(self, load: Load, seed: int) -> Score:
        function = UserFunction(self.path, self.name)
        if "prompt" not in function.parameters:
            function.refuse("has no parameter 'prompt'")
        return lambda trajectories: self._scores(function, trajectories)

    def _scores(self, function: UserFunction, trajectories: Sequence[Trajectory]) -> list[float]:
        return [
            -function.number(function({**one.episode.fields, "prompt": self.shown(one.prompt)}))
            for one in trajectories
        ]
