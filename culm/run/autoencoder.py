"""A model of concepts starts from its autoencoder: `train.objective.autoencoder` is the start."""

from __future__ import annotations

from collections.abc import Mapping

from culm.compose import Composed
from culm.config import SettingError
from culm.objective.lcm import LCM
from culm.objective.objective import ObjectiveConfig

SETTING = "train.objective.autoencoder"


def start_setting(objective: ObjectiveConfig) -> str:
    """The setting that names what a run of an objective starts from."""
    return SETTING if isinstance(objective, LCM) else "start"


def start_from_autoencoder(composed: Composed) -> Composed:
    """A run with its autoencoder as the start, if its objective names one and it has no start.

    Raises:
        SettingError: another start is given too.
    """
    train = composed.values.get("train")
    objective = train.get("objective") if isinstance(train, Mapping) else None
    named = objective.get("autoencoder") if isinstance(objective, Mapping) else None
    if not isinstance(named, str):
        return composed
    start = composed.values.get("start", named)
    if isinstance(start, Mapping):
        start = start.get("path")
    if start != named:
        raise SettingError(
            f"start: {start} is not {SETTING}={named}, from which the run starts; leave it out"
        )
    origins = {**composed.origins, "start": composed.origins.get(SETTING, SETTING)}
    return Composed({**composed.values, "start": named}, origins)
