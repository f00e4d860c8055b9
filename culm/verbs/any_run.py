"""Run files of all kinds: of language models, which name no kind, and of graphs."""

from __future__ import annotations

from collections.abc import Sequence

from culm.compose import compose_run
from culm.config import parse
from culm.graph.settings import KIND, GraphRun
from culm.run.settings import LAYOUT, RunConfig, read_run


def read_any_run(
    name: str | None, settings: Sequence[str] = ()
) -> tuple[RunConfig | GraphRun, dict[str, str]]:
    """A run file with `name=value` settings, and the origin of each of its values.

    Raises:
        SettingError: a setting is not known, or wrong.
    """
    composed = compose_run(name, settings, LAYOUT)
    if composed.values.get("kind") == KIND:
        return parse(GraphRun, composed.values), composed.origins
    return read_run(name, settings)
