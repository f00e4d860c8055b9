"""Commands that plan and start runs. Nothing heavy is imported before one runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from culm.cli import arguments as given

app = typer.Typer()
PANEL = "Train"

Run = Annotated[
    str,
    typer.Argument(help="A run file, or the name of one in configs/run.", show_default=False),
]
Seeds = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Train this many runs, each with its own seed, in FOLDER/seed-N.",
        show_default=False,
    ),
]
Sweep = Annotated[
    list[str] | None,
    typer.Option(
        help="Train a run for each value, such as train.optimizer.rate=1e-3,3e-3; repeat it to "
        "combine settings.",
        metavar="NAME=VALUE,VALUE",
        show_default=False,
    ),
]
StartTexts = Annotated[
    list[str] | None,
    typer.Option(help="Files, folders, or a Hugging Face dataset id; may be repeated."),
]
StartFolder = Annotated[str, typer.Option(help="Folder for all results.")]
Minutes = Annotated[float, typer.Option(help="Time for the complete run.", min=0.2, max=10_000)]
MoreTexts = Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", hidden=True)]
Ranks = Annotated[
    int,
    typer.Option(
        "--ranks", "--count", help="Processes, each with a device, that share the run.", min=1
    ),
]
RanksHere = Annotated[
    int, typer.Option("--ranks", help="Processes on each machine, each with a device.", min=1)
]
Nodes = Annotated[int, typer.Option(help="Machines.", min=1)]
Restarts = Annotated[
    int, typer.Option(help="How often failed processes are started again; they resume.", min=0)
]
SchedulerName = Annotated[
    Literal["slurm", "kubernetes", "skypilot", "ray"] | None,
    typer.Option("--for", help="Write the file for this scheduler, and start nothing."),
]
ContainerImage = Annotated[str, typer.Option(help="Container image with Culm, for Kubernetes.")]
JobOut = Annotated[Path | None, typer.Option(help="Where the file goes; printed if not given.")]
TargetDevice = Annotated[
    str | None,
    typer.Option(
        help="Plan for a device that is not here: rtx3090, rtx4090, l4, l40s, a100, h100, h200 or "
        "mi300x."
    ),
]
TimeBudget = Annotated[
    str | None,
    typer.Option(
        help="Propose size, tokens, batch and rate for a time such as 30m, 2h or 1d; trains "
        "micro-runs on this machine for a tenth of it, 5 minutes at most."
    ),
]


@app.command(rich_help_panel=PANEL)
def quickstart(
    text: StartTexts = None,
    folder: StartFolder = "runs/quickstart",
    minutes: Minutes = 10.0,
    more: MoreTexts = None,
    device: given.Device = "auto",
    seed: given.Seed = 0,
) -> None:
    """Train a chat model from raw text: every stage once, with a report."""
    from culm.quickstart.quickstart import quickstart as go

    go(folder, [*(text or []), *(more or [])], minutes, device, seed)


@app.command(rich_help_panel=PANEL)
def train(
    run: Run = "",
    settings: given.Settings = None,
    seeds: Seeds = None,
    sweep: Sweep = None,
) -> None:
    """Train by a run file; the same command resumes an interrupted run."""
    if seeds is not None or sweep:
        from culm.verbs.series import train_series

        train_series(run, settings or [], seeds, sweep or [])
        return
    from culm.verbs.train import train_run

    train_run(run, settings or [])


@app.command(rich_help_panel=PANEL)
def launch(
    run: Run = "",
    settings: given.Settings = None,
    ranks: RanksHere = 1,
    nodes: Nodes = 1,
    restarts: Restarts = 3,
    scheduler: SchedulerName = None,
    image: ContainerImage = "culm:latest",
    out: JobOut = None,
) -> None:
    """Train on several processes here, or write the file that starts them on a cluster."""
    from culm.verbs.launch import launch_run

    launch_run(run, settings or [], ranks, nodes, restarts, scheduler, image, out)


@app.command(rich_help_panel=PANEL)
def plan(
    run: Run = "",
    settings: given.Settings = None,
    ranks: Ranks = 1,
    device: TargetDevice = None,
    budget: TimeBudget = None,
) -> None:
    """Show what a run would do, need and learn from; or what to train in a given time."""
    from culm.graph.settings import GraphRun
    from culm.verbs.any_run import read_any_run

    config, origins = read_any_run(run, settings or [])
    if isinstance(config, GraphRun):
        from culm.verbs.graph import show_graph_plan

        show_graph_plan(config, origins)
        return
    if budget is not None:
        from culm.verbs.plan_budget import show_budget

        show_budget(run, config, budget, ranks, device)
        return
    from culm.verbs.plan import show_plan

    show_plan(config, origins, ranks, device)
