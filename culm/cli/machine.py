"""The course, and commands about this machine. Nothing heavy is imported before one runs."""

from __future__ import annotations

from typing import Annotated

import typer

from culm.cli import arguments as given

app = typer.Typer()
PANEL = "Learn and check"

BenchWhat = Annotated[str, typer.Argument(help="train or decode.")]
BenchSize = Annotated[str, typer.Option(help="Model size: S (26M), T (tiny, bytes) or L (135M).")]
BenchRows = Annotated[int | None, typer.Option(min=1, help="Sequences decoded together.")]
BenchWeights = Annotated[str | None, typer.Option(help="bf16, int8 or int4; default: each.")]
LearnWords = Annotated[
    list[str] | None,
    typer.Argument(
        help="Nothing: list the lessons. A part or lesson, such as 1 or 3a: copy it. check FILE: "
        "check the exercises of scripts or notebooks. solution EXERCISE: show a right answer.",
        metavar="LESSON | check FILE | solution EXERCISE",
        show_default=False,
    ),
]
LessonFolder = Annotated[str, typer.Option("--out", help="Folder for the copies.")]


@app.command(rich_help_panel=PANEL)
def learn(
    words: LearnWords = None,
    out: LessonFolder = "lessons",
    overwrite: given.Overwrite = False,
) -> None:
    """A course on language models: list the lessons, copy one, check your answers."""
    from culm.learn.commands import learn as study

    raise typer.Exit(study(words or [], out, overwrite))


@app.command(rich_help_panel=PANEL)
def bench(
    what: BenchWhat = "train",
    size: BenchSize = "S",
    rows: BenchRows = None,
    weights: BenchWeights = None,
    json: given.AsJson = False,
) -> None:
    """Measure training or decoding speed on this machine."""
    from culm.verbs.bench import show_bench

    show_bench(what, size, rows, weights, json)


@app.command(rich_help_panel=PANEL)
def schema() -> None:
    """Print the JSON schema of run files, for editors."""
    import json

    from culm.verbs.schema import schema as described

    typer.echo(json.dumps(described(), indent=1))


@app.command(rich_help_panel=PANEL)
def doctor(device: given.Device = "auto") -> None:
    """Show what this machine offers to Culm, and check its numerics."""
    from culm.verbs.doctor import show_doctor

    raise typer.Exit(0 if show_doctor(device) else 1)
