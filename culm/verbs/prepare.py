"""`culm prepare`: texts as token shards with a manifest."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import typer

from culm.data.prepare import prepare
from culm.data.settings import DataConfig
from culm.data.sniff import READ, first_records, format_of, kinds_in, samples
from culm.files import refuse_existing
from culm.log import console, say
from culm.source.record import Record
from culm.source.source import Source
from culm.tokenizer.read import read_tokenizer
from culm.tokenizer.tokenizer import Tokenizer
from culm.verbs.corpus import corpus_of
from culm.verbs.samples import show_samples


def prepare_corpus(
    path: Sequence[str],
    tokenizer: str,
    out: str,
    format: str | None,
    split: str,
    held_out: float,
    seed: int,
    overwrite: bool = False,
    quiet: bool = False,
) -> None:
    """Show what the texts are and samples of them, prepare them, and print their size.

    path: texts, and further `data.NAME=VALUE` settings. format: None for what the records seem to
    be. quiet: show nothing before.
    """
    refuse_existing(Path(out), overwrite)
    data = corpus_of(path, format=format or "document", split=split, held_out=held_out)
    words = read_tokenizer(tokenizer)
    source = data.open()
    records = first_records(source, data.invalid)
    given = format is not None or any(one.startswith("data.format") for one in path)
    if not given and records:
        data = data.model_copy(update={"format": format_of(records, source.name)})
    if not quiet:
        _show(source, data, records, words)
    manifest = prepare(
        data.open(), data.format, words, Path(out), data.held_out, seed,
        duplicates=data.duplicates, invalid=data.invalid, difficulty=data.difficulty,
        cleaner=data.cleaner(Path(out)), overwrite=overwrite,
        command=[
            *path, *(["--format", format] if format else []), "--split", split,
            "--held-out", str(held_out), "--seed", str(seed),
        ],
    )  # fmt: skip
    typer.echo(
        f"{out}: {manifest.documents:,} documents, {manifest.bytes:,} bytes, "
        f"{manifest.tokens:,} tokens"
    )
    for remark in manifest.remarks:
        typer.echo(remark)


def _show(
    source: Source, data: DataConfig, records: Sequence[Record], tokenizer: Tokenizer
) -> None:
    """On standard error, so that the result can be piped."""
    for sentence in kinds_in(source):
        say(sentence)
    say(f"The format is {data.format.kind}; --format names another.")
    data.format.check(tokenizer)
    found = samples(records, data.format, tokenizer)
    show_samples(console, list(islice(found, READ)))
