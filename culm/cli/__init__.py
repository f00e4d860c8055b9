"""The command line. Nothing heavy is imported before a verb runs."""

from __future__ import annotations

from typing import Annotated

import typer

from culm.cli import answers, machine, models, results, serving, texts, training
from culm.cli.near import Verbs

app = typer.Typer(
    cls=Verbs,
    name="culm",
    help="Plain text to a served, aligned language model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

for group in (training, texts, answers, serving, results, models, machine):
    app.add_typer(group.app)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback on errors.")] = False,
) -> None:
    """Plain text to a served, aligned language model."""


def main() -> None:
    """Entry point: plain sentences instead of tracebacks, and a non-zero exit on failure."""
    from culm.verbs.failure import run

    run(app)
