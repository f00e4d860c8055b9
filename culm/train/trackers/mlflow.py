"""MLflow: metrics on a tracking server, or in a folder that `mlflow ui` shows."""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from culm.train.trackers.tracker import Reporter, TrackerConfig, flat

RUN = "mlflow.txt"  # in the run folder: the id of the run there
LONGEST = 500  # characters of a setting


class MLflow(TrackerConfig):
    """uri: of the tracking server, such as http://host:5000; MLflow's own default unless given.
    experiment: where the run is listed, under the name of its folder.
    """

    kind: Literal["mlflow"] = "mlflow"
    uri: str | None = None
    experiment: str = "culm"

    def check(self) -> None:
        if find_spec("mlflow") is None:
            raise ImportError("track: mlflow is not installed; pip install 'culm[mlflow]'")

    def open(self, folder: Path, settings: Mapping[str, Any], step: int) -> MLflowListener:
        self.check()
        from mlflow import MlflowClient

        client = MlflowClient(self.uri)
        known = folder / RUN
        if known.exists():  # a run that resumes is the same one there
            run = known.read_text(encoding="utf-8")
        else:
            found = client.get_experiment_by_name(self.experiment)
            number = found.experiment_id if found else client.create_experiment(self.experiment)
            run = client.create_run(number, run_name=folder.name).info.run_id
            known.write_text(run, encoding="utf-8")
            for name, value in flat(settings).items():
                client.log_param(run, name, str(value)[:LONGEST])
        return MLflowListener(client, run)


class MLflowListener(Reporter):
    def __init__(self, client: Any, run: str) -> None:
        self._client, self._run = client, run

    def report(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._run)
