"""The evaluation of a run: an interim form around `culm.eval.measure`."""

from __future__ import annotations

from typing import Any

from culm.eval.measure import Measure
from culm.run.assemble import Assembly, held_out


class Evaluation:
    def __init__(self, run: Assembly) -> None:
        self._measure = Measure(
            run.config.eval, run.model, run.tokenizer, lambda: held_out(run),
            run.folder / "none", writes=False,
        )  # fmt: skip

    def __call__(self, step: int) -> dict[str, Any]:
        return {name: value for name, value in self._measure(step).items() if name != "step"}

    def samples(self) -> list[dict[str, Any]]:
        return self._measure.samples()


def evaluation_of(run: Assembly) -> Evaluation:
    return Evaluation(run)
