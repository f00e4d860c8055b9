"""`culm classifier`: a classifier of good and bad texts, for a stage of `data.clean`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import typer

from culm.data.clean.linear import train
from culm.data.clean.strings import texts_of_all
from culm.data.notes import Notes
from culm.data.origin import origin_of
from culm.data.settings import DataConfig
from culm.data.units import units_of
from culm.files import refuse_existing
from culm.verbs.corpus import corpus_of


def train_classifier(
    positive: Sequence[str],
    negative: Sequence[str],
    out: str,
    settings: Sequence[str] = (),
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Train a classifier, write it with its accuracy, and print that. settings: of both texts,
    `data.NAME=VALUE`.
    """
    refuse_existing(Path(out), overwrite)
    corpora = [corpus_of([*paths, *settings]) for paths in (positive, negative)]
    notes = Notes(corpora[0].invalid)
    good, bad = (_texts(data, notes) for data in corpora)
    model, accuracy = train(good, bad, seed)
    origins = [
        {name: file.sha256 for name, file in origin_of(data.open()).items()} for data in corpora
    ]
    facts = {"positive": origins[0], "negative": origins[1], "seed": seed, **asdict(accuracy)}
    model.save(Path(out), facts)
    low, high = accuracy.interval
    typer.echo(
        f"{out}: of {accuracy.texts:,} held-out texts, {accuracy.positive:.1%} of the positive "
        f"and {accuracy.negative:.1%} of the negative are right, {accuracy.balanced:.1%} on "
        f"average (95 % interval {low:.1%} to {high:.1%}; chance is 50 %)"
    )
    if not accuracy.better_than_chance:
        typer.echo(
            "That is not better than chance: the classifier does not distinguish these texts. Give "
            "more of them, or texts that differ."
        )
    for remark in notes.remarks:
        typer.echo(remark)


def _texts(data: DataConfig, notes: Notes) -> Iterator[str]:
    source = data.open()
    notes.counts.update(source.left_out)
    for unit in data.cleaner().clean(units_of(source, data.format, notes)):
        yield "\n".join(texts_of_all(unit.contents)[0])
