"""Where metrics are reported to: one file a tracker; this union is the registry."""

from typing import Annotated

from pydantic import BeforeValidator

from culm.config import listed, one_of
from culm.train.trackers.tensorboard import TensorBoard

Tracker = one_of(TensorBoard)
Trackers = Annotated[tuple[Tracker, ...], BeforeValidator(listed)]  # type: ignore[valid-type]
