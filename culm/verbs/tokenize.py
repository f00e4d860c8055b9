"""`culm tokenize`: a byte-level BPE tokenizer from texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from culm.data.format.document import DocumentFormat
from culm.data.source import open_source
from culm.data.texts import texts_of
from culm.files import atomic, refuse_existing, refuse_nonempty
from culm.tokenizer.folder import CONFIG
from culm.tokenizer.train import BPE


def train_tokenizer(
    path: Sequence[str], out: str, vocabulary: int, overwrite: bool = False
) -> None:
    """Train a tokenizer and write it to a folder. overwrite: replace an older tokenizer there.

    Raises:
        ValueError: the folder holds other files, or the texts cannot be read.
    """
    refuse_existing(Path(out), overwrite)
    refuse_nonempty(Path(out), CONFIG)
    source = open_source(list(path))
    tokenizer = BPE(vocabulary=vocabulary).build(texts_of(source, DocumentFormat()))
    with atomic(Path(out)) as fresh:
        tokenizer.save(fresh)
    typer.echo(f"{out}: {tokenizer.vocabulary} tokens")
