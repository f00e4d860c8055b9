"""Texts and `data.NAME=VALUE` settings on a command line, as in a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from culm.compose import compose_run, merge
from culm.config import SettingError, parse
from culm.data.settings import DataConfig


def corpus_of(given: Sequence[str], **options: str | float) -> DataConfig:
    """The `data` section of these arguments. options: settings with an option of their own.

    Raises:
        SettingError: a setting is not one of the section, or has no such value.
    """
    return corpus_and(None, given, **options)[0]


def corpus_and(
    other: str | None, given: Sequence[str], **options: str | float
) -> tuple[DataConfig, Any]:
    """The `data` section that these arguments set, and the settings of another section, or None.

    Raises:
        SettingError: a setting belongs to neither section, or `data` has no such setting.
    """
    settings = [one for one in given if "=" in one and not Path(one).exists()]
    paths = [one for one in given if one not in settings]
    values = compose_run(None, settings).values
    if others := sorted(values.keys() - {"data", other}):
        more = "" if other is None else f" or the {other}"
        raise SettingError(
            f"{others[0]}: only settings of the data{more} apply here: "
            f"{'data' if other is None else 'data.NAME or ' + other}.NAME=VALUE"
        )
    merged = merge({"path": paths, **options}, values.get("data", {}))
    return parse(DataConfig, merged, "data"), None if other is None else values.get(other)
