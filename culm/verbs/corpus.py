"""Texts and `data.NAME=VALUE` settings on a command line, as in a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from culm.compose import compose_run, merge
from culm.config import SettingError, parse
from culm.data.settings import DataConfig


def corpus_of(given: Sequence[str], **options: str | float) -> DataConfig:
    """The `data` section of these arguments. options: settings with an option of their own.

    Raises:
        SettingError: a setting is not one of the section, or has no such value.
    """
    settings = [one for one in given if "=" in one and not Path(one).exists()]
    paths = [one for one in given if one not in settings]
    values = compose_run(None, settings).values
    if others := sorted(values.keys() - {"data"}):
        raise SettingError(f"{others[0]}: only settings of the data apply here: data.NAME=VALUE")
    return parse(DataConfig, merge({"path": paths, **options}, values.get("data", {})), "data")
