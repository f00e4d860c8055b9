"""Datasets of the Hugging Face hub, streamed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from culm.config import SettingError
from culm.source.record import Record, without_absent
from culm.source.remote import File, Unreachable

ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?(:[\w.-]+){0,2}")


@dataclass(frozen=True)
class Hub:
    """name: owner/name[@revision][:subset[:split]], as in HuggingFaceFW/fineweb-edu:sample-10BT.

    setting: what errors call it.
    """

    name: str
    setting: str = "data.path"
    size: int | None = None  # the hub does not say

    @property
    def dataset(self) -> str:
        """owner/name."""
        return self.name.partition(":")[0].partition("@")[0]

    @property
    def wanted(self) -> str | None:
        """The revision in the name."""
        return self.name.partition(":")[0].partition("@")[2] or None

    @property
    def files(self) -> Sequence[File]:
        return ()

    @property
    def left_out(self) -> Mapping[str, int]:
        return {}

    @property
    def revision(self) -> str | None:
        """The commit that is read, each time the same; None if the hub does not say."""
        try:
            commit = self._commit
        except SettingError:  # which reading the dataset raises too
            commit = None
        return self.wanted if commit is None else commit or None

    @cached_property
    def _commit(self) -> str | None:
        from culm import hub  # its library takes 0.2 s to import, which other sources do not need

        try:
            return hub.commit_of(self.dataset, "dataset", self.wanted)
        except SettingError as error:
            raise SettingError(f"{self.setting}: {error}") from None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        try:
            from datasets import config, load_dataset
        except ImportError:
            raise SettingError(
                f"{self.setting}: {self.name!r} is no file here, and hub datasets need an extra: "
                f"pip install 'culm[data]'"
            ) from None
        subset, _, split = self.name.partition(":")[2].partition(":")
        # HF_HUB_OFFLINE reads what was downloaded before.
        if not config.HF_HUB_OFFLINE and self._commit is None:
            raise Unreachable(
                f"{self.setting}: {self.name!r} is no file or folder here, and the hub is not "
                "reachable: go online, or give a file or folder; HF_HUB_OFFLINE=1 reads what the "
                "datasets library downloaded before"
            )
        try:
            rows = load_dataset(
                self.dataset, subset or None, split=split or "train", revision=self.revision,
                streaming=True,
            )  # fmt: skip
            for number, row in enumerate(rows, start=1):
                values = {name: without_absent(value) for name, value in row.items()}
                yield Record(values, f"{self.name}: record {number}")
        except (OSError, ValueError) as error:  # what datasets and the hub raise derives from these
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            lost = config.HF_HUB_OFFLINE or isinstance(error, ConnectionError)
            raise (Unreachable if lost else SettingError)(
                f"{self.setting}: {self.name!r} is no file or folder here, and the hub did not "
                f"give such a dataset: {why.rstrip('.')}; check the name, its subset and split, "
                "and the network"
            ) from error
