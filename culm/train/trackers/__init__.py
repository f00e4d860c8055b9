"""Where metrics are reported to: one file a tracker; this union is the registry."""

from typing import Annotated

from pydantic import BeforeValidator

from culm.config import listed, one_of
from culm.train.trackers.mlflow import MLflow
from culm.train.trackers.tensorboard import TensorBoard
from culm.train.trackers.wandb import WandB

Tracker = one_of(TensorBoard | WandB | MLflow)
Trackers = Annotated[tuple[Tracker, ...], BeforeValidator(listed)]  # type: ignore[valid-type]
