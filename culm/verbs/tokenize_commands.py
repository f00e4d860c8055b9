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


@tokenize.command()
def encode(
    tokenizer: given.AnyTokenizer,
    files: given.TextFiles = None,
    lines: given.Lines = False,
    specials: given.SpecialNames = False,
    json: given.PrintJson = False,
) -> None:
    """Print the token ids of texts, a line for each."""
    from culm.verbs.tokenize_text import encode_texts

    encode_texts(tokenizer, files or [], lines, specials, json)


@tokenize.command()
def decode(
    tokenizer: given.AnyTokenizer,
    files: given.TextFiles = None,
    lines: given.Lines = False,
    specials: given.SpecialNames = False,
) -> None:
    """Print the text of token ids."""
    from culm.verbs.tokenize_text import decode_ids

    decode_ids(tokenizer, files or [], lines, specials)


@tokenize.command()
def compare(
    tokenizers: given.Tokenizers,
    text: given.ComparedTexts,
    json: given.PrintJson = False,
) -> None:
    """Print how well tokenizers compress texts, and how fast they are."""
    from culm.verbs.tokenize_text import compare_tokenizers

    compare_tokenizers(tokenizers, text, json)
