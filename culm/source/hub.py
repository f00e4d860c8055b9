"""Datasets of the Hugging Face hub, streamed; also a folder in the hub's layout."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from culm.config import SettingError
from culm.source.record import Record

ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?(:[\w.-]+){0,2}")
SECONDS = 10.0  # that the hub has to name its newest revision


@dataclass(frozen=True)
class Hub:
    """name: owner/name[@revision][:subset[:split]], as in HuggingFaceFW/fineweb-edu:sample-10BT."""

    name: str
    size: int | None = None  # the hub does not say

    @property
    def dataset(self) -> str:
        """owner/name."""
        return self.name.partition(":")[0].partition("@")[0]

    @cached_property
    def revision(self) -> str | None:
        """The commit that is read, each time the same; None if the hub does not say."""
        from huggingface_hub import HfApi

        wanted = self.name.partition(":")[0].partition("@")[2] or None
        try:
            return HfApi().dataset_info(self.dataset, revision=wanted, timeout=SECONDS).sha
        except (OSError, ValueError):  # what the hub raises derives from these
            return wanted

    def __iter__(self) -> Iterator[dict[str, Any]]:
        try:
            from datasets import load_dataset
        except ImportError:
            raise SettingError(
                f"data.path: {self.name!r} is no file here, and hub datasets need an extra: "
                f"pip install 'culm[data]'"
            ) from None
        subset, _, split = self.name.partition(":")[2].partition(":")
        try:
            rows = load_dataset(
                self.dataset, subset or None, split=split or "train", revision=self.revision,
                streaming=True,
            )  # fmt: skip
            for number, row in enumerate(rows, start=1):
                yield Record(row, f"{self.name}: record {number}")
        except (OSError, ValueError) as error:  # what datasets and the hub raise derives from these
            raise SettingError(
                f"data.path: {self.name!r} is no file or folder here, and the hub has no such "
                f"dataset ({type(error).__name__}); check the name and the network"
            ) from error
