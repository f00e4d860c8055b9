"""`culm train`: a run from its file, then its report."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from culm.eval.report import write_report
from culm.run.settings import read_run
from culm.run.train import train


def train_run(run: str, settings: Sequence[str]) -> None:
    """Train, or resume where the run stopped; exits with 130 if it was interrupted."""
    config, _ = read_run(run, list(settings))
    result = train(config)
    if not result.finished:
        raise typer.Exit(130)
    write_report(result.folder)
    typer.echo(f"Done: {result.folder}/model, {result.folder}/report.md")
