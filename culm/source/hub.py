"""Datasets of the Hugging Face hub, streamed; also a folder in the hub's layout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from culm.config import SettingError


@dataclass(frozen=True)
class Hub:
    """name: owner/name[:subset[:split]], as in HuggingFaceFW/fineweb-edu:sample-10BT."""

    name: str
    size: int | None = None  # the hub does not say

    def __iter__(self) -> Iterator[dict[str, Any]]:
        try:
            from datasets import load_dataset
        except ImportError:
            raise SettingError(
                f"data.path: {self.name!r} is no file here, and hub datasets need an extra: "
                f"pip install 'culm[data]'"
            ) from None
        dataset, _, rest = self.name.partition(":")
        subset, _, split = rest.partition(":")
        try:
            yield from load_dataset(dataset, subset or None, split=split or "train", streaming=True)
        except (OSError, ValueError) as error:  # what datasets and the hub raise derives from these
            raise SettingError(
                f"data.path: {self.name!r} is no file or folder here, and the hub has no such "
                f"dataset ({type(error).__name__}); check the name and the network"
            ) from error
