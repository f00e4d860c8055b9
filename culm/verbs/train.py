"""`culm train`: a run from its file, then its report."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import typer

from culm import log
from culm.config import SettingError, UnavailableError
from culm.eval.report import write_report
from culm.exits import Refused
from culm.graph.settings import GraphRun
from culm.graph.train import train_graph
from culm.run.train import train
from culm.verbs.any_run import read_any_run


def train_run(run: str, settings: Sequence[str]) -> None:
    """Train, or resume where the run stopped; exits with 75 or 130 if it was interrupted.

    Raises:
        Refused: a setting or a file cannot be used, so that the same command would fail again.
    """
    try:
        config, _ = read_any_run(run, list(settings))
        result = train_graph(config) if isinstance(config, GraphRun) else train(config)
    except UnavailableError:
        raise
    except SettingError as error:
        raise Refused(str(error)) from error
    if not result.finished:
        raise typer.Exit(result.exit_code)
    if not log.is_first_rank():  # which writes for all
        return
    report = f", {result.folder}/report.md"
    try:
        write_report(result.folder)
    except Exception as error:  # whatever a library of plots raises
        log.say(f"The report could not be written: {error}")
        report = ""
    with suppress(OSError):  # nobody reads it any more
        typer.echo(f"Done: {result.folder}/model{report}")
