"""`culm tokenize train`: a tokenizer from texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from culm import log
from culm.atomic import atomic
from culm.config import SettingError, kind_unless_given, parse
from culm.data.notes import Notes
from culm.data.settings import DataConfig
from culm.data.texts import texts_of
from culm.files import refuse_existing, refuse_nonempty
from culm.tokenizer import TokenizerConfig
from culm.tokenizer.folder import CONFIG, SENTENCEPIECE
from culm.tokenizer.sentencepiece_train import SentencePiece
from culm.tokenizer.sentencepiece_write import to_model
from culm.tokenizer.trained import Trained
from culm.verbs.corpus import corpus_and


def train_tokenizer(
    path: Sequence[str], out: str, vocabulary: int | None = None, overwrite: bool = False
) -> None:
    """Train a tokenizer and write it to a folder. overwrite: replace an older tokenizer there.

    path: texts, `data.NAME=VALUE` and `tokenizer.NAME=VALUE` settings.

    Raises:
        ValueError: the folder holds other files, or the texts cannot be read.
    """
    refuse_existing(Path(out), overwrite)
    refuse_nonempty(Path(out), CONFIG)
    data, given = corpus_and("tokenizer", path)
    settings = _settings(given, vocabulary)
    notes = Notes(data.invalid)
    tokenizer = settings.build(_read(data, notes))
    with atomic(Path(out)) as fresh:
        tokenizer.save(fresh)
        if isinstance(settings, SentencePiece):
            (fresh / SENTENCEPIECE).write_bytes(to_model(tokenizer))
    typer.echo(f"{out}: {tokenizer.vocabulary:,} tokens")
    for remark in notes.remarks:
        typer.echo(remark)


def _settings(given: Any, vocabulary: int | None) -> Trained:
    """The settings of a kind that is trained."""
    values = {} if given is None else {"kind": given} if isinstance(given, str) else dict(given)
    if vocabulary is not None:
        if "vocabulary" in values:
            raise SettingError("tokenizer.vocabulary: given twice; leave out --vocabulary")
        values["vocabulary"] = vocabulary
    kind: Any = Annotated[TokenizerConfig, kind_unless_given("bpe")]
    settings = parse(kind, values or "bpe", "tokenizer")
    if not isinstance(settings, Trained):
        raise SettingError(f"tokenizer.kind: {settings.kind} is not trained; a run can name it")
    return settings


def _read(data: DataConfig, notes: Notes) -> Iterator[str]:
    """The texts, with a progress bar. notes: of what is left out."""
    source = data.open()
    with log.progress("read", source.size, "bytes") as bar:
        for text in texts_of(source, data.format, data.invalid, notes, data.cleaner()):
            bar.advance(len(text.encode()))
            yield text
    notes.counts.update(source.left_out)  # some of which a source counts while it is read
