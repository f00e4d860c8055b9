"""All measures of a run, taken together."""

from __future__ import annotations

from typing import Any

from culm.config import SettingError
from culm.eval.measure.measure import Subject
from culm.eval.settings import EvalConfig
from culm.parallel.sharded import unsharded


class Evaluation:
    """Measures a subject by each measure of the settings."""

    def __init__(self, settings: EvalConfig, subject: Subject) -> None:
        self.settings, self.subject = settings, subject

    def check(self) -> None:
        """Whether all measures will be possible; asked before the first step, and by a plan.

        Raises:
            SettingError: naming the measure that is not.
        """
        for name, measure in self.settings.measures.items():
            try:
                measure.check(self.subject)
            except ValueError as error:
                raise SettingError(f"eval.measures.{name}: {error}") from error

    def run(self, final: bool = False) -> dict[str, Any]:
        """Results by name; every rank takes part and gets the same ones.

        A measure that is named after its kind keeps the names of its results; others put their
        own name in front, as in `books.loss`.

        final: after the last step, include the measures that are taken only then.
        """
        results: dict[str, Any] = {}
        with unsharded(self.subject.model):
            for name, measure in self.settings.measures.items():
                if final or not measure.last_step_only:
                    found = measure.measure(self.subject)
                    prefix = "" if name == measure.kind else f"{name}."
                    results |= {f"{prefix}{key}": value for key, value in found.items()}
        return results
