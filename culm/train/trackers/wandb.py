"""Weights & Biases: metrics on its servers, or in a folder that `wandb sync` sends later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from culm.train.trackers.tracker import Reporter, Sample, TrackerConfig, run_id


class WandB(TrackerConfig):
    """project: where the run is listed, under the name of its folder. mode: online needs
    `wandb login`; offline writes into the run folder only.
    """

    kind: Literal["wandb"] = "wandb"
    project: str = "culm"
    mode: Literal["online", "offline"] = "online"

    def check(self) -> None:
        if find_spec("wandb") is None:
            raise ImportError("train.trackers: wandb is not installed; pip install 'culm[wandb]'")

    def open(self, folder: Path, settings: Mapping[str, Any], step: int) -> WandBListener:
        self.check()
        import wandb

        run = wandb.init(
            project=self.project, name=folder.name, id=run_id(folder), resume="allow",
            dir=str(folder), config=dict(settings), mode=self.mode,
            settings=wandb.Settings(silent=True, console="off"),
        )  # fmt: skip
        return WandBListener(run)


class WandBListener(Reporter):
    def __init__(self, run: Any) -> None:
        self._run = run

    def report(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def report_samples(self, name: str, samples: Sequence[Sample], step: int) -> None:
        import wandb

        rows = [list(sample) for sample in samples]
        self._run.log({name: wandb.Table(columns=list(Sample._fields), data=rows)}, step=step)

    def close(self) -> None:
        self._run.finish()
