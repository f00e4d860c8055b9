"""`culm launch`: a run on several processes here, or a file that starts it on a cluster."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import typer

from culm.atomic import atomic
from culm.config import SettingError
from culm.graph.settings import GraphRun
from culm.run.settings import RunConfig
from culm.verbs.any_run import read_any_run
from culm.verbs.launch_files import Job, Scheduler, job_file


def launch_run(
    run: str,
    settings: Sequence[str],
    ranks: int,
    nodes: int,
    restarts: int,
    scheduler: Scheduler | None,
    image: str,
    out: Path | None,
) -> None:
    """Replace this process by torchrun, or write the file for a scheduler.

    Raises:
        SettingError: the run cannot be read, or its layout does not divide this many processes.
    """
    config, _ = read_any_run(run, list(settings))
    if isinstance(config, GraphRun) and scheduler == "ray":
        raise SettingError("for: ray starts runs of language models; use another scheduler")
    if ranks * nodes > 1 and isinstance(config, RunConfig):
        from culm.run.update import check_processes  # and so PyTorch

        check_processes(config, ranks * nodes)
    job = Job(run, tuple(settings), config.folder, ranks, nodes, restarts, image)
    if scheduler is not None:
        _write(job_file(job, scheduler), out)
        return
    if nodes > 1:
        names = ", ".join(get_args(Scheduler))
        raise SettingError(f"nodes: machines are started by a scheduler; --for one of {names}")
    here = [sys.executable, "-m", "culm.parallel.torchrun", *job.torchrun("--standalone")]
    # Each process would else use one thread, on a machine that may have more for it.
    threads = str(max(1, (os.cpu_count() or 1) // ranks))
    os.environ.setdefault("OMP_NUM_THREADS", threads)
    os.execv(sys.executable, here)


def _write(text: str, out: Path | None) -> None:
    if out is None:
        typer.echo(text, nl=False)
        return
    with atomic(out) as fresh:
        fresh.write_text(text, encoding="utf-8")
    typer.echo(f"Wrote {out}.")
