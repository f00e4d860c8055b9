"""The `eval` section of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, NonNegativeInt, PositiveInt

from culm.config import Config, SettingError
from culm.eval.measure import Measure
from culm.eval.measure.held_out import HeldOut
from culm.eval.measure.measure import MeasureConfig

M = TypeVar("M", bound=MeasureConfig)


def _named(measures: Any) -> Any:
    """A name stands for the kind when no kind is given; null removes an inherited measure."""
    if not isinstance(measures, Mapping):
        return measures
    return {
        name: {"kind": name, **given} if isinstance(given, Mapping) else given
        for name, given in measures.items()
        if given is not None
    }


class EvalConfig(Config):
    """What is measured at the start and the end of a run, and in between if asked for.

    every_steps: optimizer steps between two evaluations. seed: of the questions and of sampling.
    measures: by name, which stands for the kind: `{held_out: {tokens: 50000}}`. Several of one kind
        have names of their own: `{books: {kind: held_out}}`. A measure that is null is left out.
    """

    every_steps: PositiveInt | None = None
    seed: NonNegativeInt = 1
    measures: Annotated[Mapping[str, Measure], BeforeValidator(_named)] = {"held_out": HeldOut()}

    def first(self, kind: type[M]) -> M:
        """The first measure of a class.

        Raises:
            SettingError: there is none.
        """
        for measure in self.measures.values():
            if isinstance(measure, kind):
                return measure
        name = kind.model_fields["kind"].default
        raise SettingError(f"eval.measures: none is of the kind {name}")
