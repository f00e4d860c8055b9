"""The commands of `culm tokenize`. Nothing heavy is imported before one runs."""

from __future__ import annotations

import typer

from culm.verbs import arguments as given
from culm.verbs.near import TokenizeCommands

tokenize = typer.Typer(
    cls=TokenizeCommands,
    name="tokenize",
    help="Train, use and compare tokenizers.",
    no_args_is_help=True,
)


@tokenize.command()
def train(
    path: given.TrainingTexts,
    out: given.TokenizerOut = "runs/tokenizer",
    vocabulary: given.Vocabulary = None,
    overwrite: given.Overwrite = False,
) -> None:
    """Train a tokenizer: byte-level BPE, or tokenizer=sentencepiece or spacy."""
    from culm.verbs.tokenize import train_tokenizer

    train_tokenizer(path, out, vocabulary, overwrite)
