"""`culm prepare`: texts as token shards with a manifest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from culm.data.prepare import prepare
from culm.tokenizer.tokenizer import Tokenizer
from culm.verbs.corpus import corpus_of


def prepare_corpus(
    path: Sequence[str],
    tokenizer: str,
    out: str,
    format: str,
    split: str,
    held_out: float,
    seed: int,
    overwrite: bool = False,
) -> None:
    """Prepare a corpus with a tokenizer's folder, and print its size.

    path: texts, and further `data.NAME=VALUE` settings.
    """
    data = corpus_of(path, format=format, split=split, held_out=held_out)
    manifest = prepare(
        data.open(), data.format, Tokenizer.load(tokenizer), Path(out), data.held_out, seed,
        duplicates=data.duplicates, invalid=data.invalid, difficulty=data.difficulty,
        cleaner=data.cleaner(Path(out)), overwrite=overwrite,
    )  # fmt: skip
    typer.echo(
        f"{out}: {manifest.documents:,} documents, {manifest.bytes:,} bytes, "
        f"{manifest.tokens:,} tokens"
    )
    for remark in manifest.remarks:
        typer.echo(remark)
