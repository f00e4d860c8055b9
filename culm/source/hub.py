"""Datasets of the Hugging Face hub, streamed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from culm import hub
from culm.config import SettingError


@dataclass(frozen=True)
class Hub:
    """name: owner/name[:subset[:split]], as in HuggingFaceFW/fineweb-edu:sample-10BT.

    setting: what errors call it.
    """

    name: str
    setting: str = "data.path"
    size: int | None = None  # the hub does not say

    def __iter__(self) -> Iterator[dict[str, Any]]:
        try:
            from datasets import config, load_dataset
        except ImportError:
            raise SettingError(
                f"{self.setting}: {self.name!r} is no file here, and hub datasets need an extra: "
                f"pip install 'culm[data]'"
            ) from None
        dataset, _, rest = self.name.partition(":")
        subset, _, split = rest.partition(":")
        if not config.HF_HUB_OFFLINE:  # which reads what was downloaded before
            self._ask(dataset)
        try:
            yield from load_dataset(dataset, subset or None, split=split or "train", streaming=True)
        except (OSError, ValueError) as error:  # what datasets and the hub raise derives from these
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise SettingError(
                f"{self.setting}: {self.name!r} is no file or folder here, and the hub did not "
                f"give such a dataset: {why.rstrip('.')}; check the name, its subset and split, "
                "and the network"
            ) from error

    def _ask(self, dataset: str) -> None:
        try:
            reached = hub.answers(dataset, "dataset")
        except SettingError as error:
            raise SettingError(f"{self.setting}: {error}") from None
        if not reached:
            raise SettingError(
                f"{self.setting}: {self.name!r} is no file or folder here, and the hub is not "
                "reachable: go online, or give a file or folder; HF_HUB_OFFLINE=1 reads what the "
                "datasets library downloaded before"
            )
