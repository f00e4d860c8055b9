"""MLflow: metrics on a tracking server, or in a folder that `mlflow ui` shows."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from culm.files import json_text
from culm.train.trackers.tracker import Reporter, Sample, TrackerConfig, flat, run_id

TAG = "culm.run"  # of a run there: the id of the run folder
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
            raise ImportError("train.trackers: mlflow is not installed; pip install 'culm[mlflow]'")

    def open(self, folder: Path, settings: Mapping[str, Any], step: int) -> MLflowListener:
        self.check()
        from mlflow import MlflowClient

        client = MlflowClient(self.uri)
        found = client.get_experiment_by_name(self.experiment)
        number = found.experiment_id if found else client.create_experiment(self.experiment)
        own = run_id(folder)
        if known := client.search_runs([number], f"tags.`{TAG}` = '{own}'"):
            return MLflowListener(client, known[0].info.run_id)
        run = client.create_run(number, run_name=folder.name, tags={TAG: own}).info.run_id
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

    def report_samples(self, name: str, samples: Sequence[Sample], step: int) -> None:
        content = json_text([sample._asdict() for sample in samples], indent=1)
        self._client.log_text(self._run, content, f"{name}/step-{step}.json")

    def close(self) -> None:
        self._client.set_terminated(self._run)
