"""`culm push`: a finished model on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from culm.log import say
from culm.ship.push import prepare, push
from culm.verbs.format import size


def push_model(
    model: str,
    repo: str,
    tag: str | None,
    licence: str | None,
    results: Sequence[str],
    public: bool,
    dry_run: bool,
) -> None:
    """Upload it and print its address; with `dry_run`, print the card and say what would go."""
    if not dry_run:
        typer.echo(push(model, repo, tag, licence, results, public))
        return
    upload = prepare(model, repo, tag, licence, results)
    sizes = {name: path.stat().st_size for name, path in upload.files.items()}
    sizes |= {name: len(text.encode()) for name, text in upload.written.items()}
    say(f"{repo}, version {upload.version}, {'public' if public else 'private'}:")
    for name, count in sorted(sizes.items()):
        say(f"  {name}, {size(count)}")
    if upload.left:
        say(f"Not uploaded: {', '.join(upload.left)}.")
    say("Nothing was uploaded. The card:")
    typer.echo(upload.written["README.md"], nl=False)
