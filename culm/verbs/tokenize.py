"""`culm tokenize`: a byte-level BPE tokenizer from texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from culm.atomic import atomic
from culm.data.notes import Notes
from culm.data.texts import texts_of
from culm.files import refuse_existing, refuse_nonempty
from culm.tokenizer.folder import CONFIG
from culm.tokenizer.train import BPE
from culm.verbs.corpus import corpus_of


def train_tokenizer(
    path: Sequence[str], out: str, vocabulary: int, overwrite: bool = False
) -> None:
    """Train a tokenizer and write it to a folder. overwrite: replace an older tokenizer there.

    path: texts, and `data.NAME=VALUE` settings.

    Raises:
        ValueError: the folder holds other files, or the texts cannot be read.
    """
    refuse_existing(Path(out), overwrite)
    refuse_nonempty(Path(out), CONFIG)
    data = corpus_of(path)
    source, notes = data.open(), Notes(data.invalid)
    notes.counts.update(source.left_out)
    texts = texts_of(source, data.format, data.invalid, notes, data.cleaner())
    tokenizer = BPE(vocabulary=vocabulary).build(texts)
    with atomic(Path(out)) as fresh:
        tokenizer.save(fresh)
    typer.echo(f"{out}: {tokenizer.vocabulary} tokens")
    for remark in notes.remarks:
        typer.echo(remark)
