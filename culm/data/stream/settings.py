"""The settings of a stream."""

from __future__ import annotations

from pydantic import PositiveInt

from culm.config import Config


class StreamConfig(Config):
    """workers: processes that tokenise, on each rank. prefetch: blocks of text of each that are
        ready or waiting at most; then its worker waits.
    shuffle: documents that are read ahead and shuffled; 1 keeps the order of the source.
    """

    workers: PositiveInt = 2
    prefetch: PositiveInt = 16
    shuffle: PositiveInt = 10_000
