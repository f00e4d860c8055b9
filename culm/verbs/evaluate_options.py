"""Options of `culm eval` that cannot be combined: refused, since one would be ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from culm.config import SettingError

# What is measured instead of a suite, and the options that a suite alone has.
INSTEAD = {
    "lm_eval": ("suite", "data", "text", "output", "against", "contamination", "judge"),
    "text": ("suite", "questions", "data", "output", "contamination", "judge"),
}
SHOWN = {"output": "out", "lm_eval": "lm-eval", "include_path": "include-path"}
USUAL = {"suite": "tasks"}


def refuse_unused(options: Mapping[str, Any]) -> None:
    """options: those of `culm.verbs.evaluate.Options`, by name.

    Raises:
        SettingError: one of them would not be used.
    """
    for name, others in INSTEAD.items():
        if options[name] is None:
            continue
        for other in others:
            if options[other] not in (None, USUAL.get(other)):
                raise SettingError(
                    f"{_shown(other)}: it is not used with --{_shown(name)}, which is measured "
                    "instead of a suite; leave one of the two out"
                )
    if options["include_path"] is not None and options["lm_eval"] is None:
        raise SettingError("include-path: it is a folder of tasks of lm-eval; give --lm-eval TASKS")


def refuse_for_points(options: Mapping[str, Any], usual: Mapping[str, Any]) -> None:
    """options: as for `refuse_unused`, of an evaluation of points for a graph; usual: the defaults.

    Raises:
        SettingError: one of them would not be used.
    """
    for name, value in options.items():
        if name != "as_json" and value != usual[name]:
            raise SettingError(
                f"{_shown(name)}: the model has points of a graph, whose reconstruction is all "
                "that is measured; leave it out"
            )


def _shown(name: str) -> str:
    return SHOWN.get(name, name)
