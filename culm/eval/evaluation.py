"""All measures of a run, taken together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from culm import log
from culm.config import SettingError
from culm.eval.measure.measure import MeasureConfig, Subject
from culm.eval.settings import EvalConfig
from culm.parallel.ranks import AgreeingRanks, RankFailed
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
            for name, measure in self._due(final):
                results |= _prefixed(name, measure, measure.measure(self.subject))
        return results

    def attempt(self) -> dict[str, Any]:
        """As `run`, while training. A measure that fails costs no more than its results: why it
        failed is said, and stands in `failed` by its name.

        If it fails on one rank, all ranks give it up. A rank that fails within a model that is
        spread over several cannot be waited for.
        """
        results: dict[str, Any] = {}
        failed: dict[str, str] = {}
        ranks = AgreeingRanks.of(self.subject.ranks)
        subject = replace(self.subject, ranks=ranks)
        with unsharded(subject.model):
            for name, measure in self._due(final=False):
                try:
                    results |= _prefixed(name, measure, _measured(measure, subject, ranks))
                except RankFailed as error:
                    failed[name] = str(error)
                    log.say(f"The measure {name} failed, and training continues: {error}")
        return {**results, "failed": failed} if failed else results

    def _due(self, final: bool) -> Iterator[tuple[str, MeasureConfig]]:
        for name, measure in self.settings.measures.items():
            if final or not measure.last_step_only:
                yield name, measure


def _prefixed(name: str, measure: MeasureConfig, found: dict[str, Any]) -> dict[str, Any]:
    prefix = "" if name == measure.kind else f"{name}."
    return {f"{prefix}{key}": value for key, value in found.items()}


def _measured(measure: MeasureConfig, subject: Subject, ranks: AgreeingRanks) -> dict[str, Any]:
    """The results of a measure.

    Raises:
        RankFailed: it failed, here or on another rank.
    """
    try:
        found = measure.measure(subject)
    except RankFailed:
        raise
    except Exception as error:  # a server that is gone, a full disk, anyone's code
        said = f"{type(error).__name__}: {error}"
        ranks.agree(said)
        raise RankFailed(said) from error
    ranks.agree()
    return found
