"""The settings of a stream."""

from __future__ import annotations

from typing import Annotated

from pydantic import PositiveInt

from culm.config import MAY_CHANGE, Config


class StreamConfig(Config):
    """workers: processes that tokenise, on each rank. prefetch: blocks of text of each that are
        ready or waiting at most; then its worker waits.
    shuffle: documents that are read ahead and shuffled; 1 keeps the order of the source.
    """

    workers: Annotated[PositiveInt, MAY_CHANGE] = 2
    prefetch: Annotated[PositiveInt, MAY_CHANGE] = 16
    shuffle: PositiveInt = 10_000
