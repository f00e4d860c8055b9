"""The commands of `culm tokenize`. Nothing heavy is imported before one runs."""

from __future__ import annotations

from typing import Annotated

import typer

from culm.cli import arguments as given
from culm.cli.near import TokenizeCommands

app = typer.Typer(
    cls=TokenizeCommands,
    name="tokenize",
    help="Train, use and compare tokenizers.",
    no_args_is_help=True,
)

TokenizerOut = Annotated[str, typer.Option(help="Folder of the new tokenizer.")]
Vocabulary = Annotated[
    int | None, typer.Option(help="Number of tokens; 4096 unless given.", min=257)
]
TrainingTexts = Annotated[
    list[str],
    typer.Argument(
        help="Files, folders, stdlib, or a Hugging Face dataset id; and settings, such as "
        "tokenizer=sentencepiece, tokenizer.digits=grouped or data.invalid=skip."
    ),
]
AnyTokenizer = Annotated[
    str,
    typer.Argument(help="A folder, a .model, .tiktoken or .gguf file, or bytes."),
]
Tokenizers = Annotated[
    list[str], typer.Argument(help="Folders, .model, .tiktoken or .gguf files, or bytes.")
]
TextFiles = Annotated[
    list[str] | None, typer.Argument(metavar="[FILE]...", help="Default: standard input.")
]
Lines = Annotated[bool, typer.Option("--lines", help="Each line is a text.")]
SpecialNames = Annotated[
    bool, typer.Option("--specials", help="Read or show the names of special tokens.")
]
ComparedTexts = Annotated[
    list[str],
    typer.Option("--text", help="A text, or NAME=TEXT for a name of several; may be repeated."),
]
PrintJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def train(
    path: TrainingTexts,
    out: TokenizerOut = "runs/tokenizer",
    vocabulary: Vocabulary = None,
    overwrite: given.Overwrite = False,
) -> None:
    """Train a tokenizer: byte-level BPE, or tokenizer=sentencepiece or spacy."""
    from culm.verbs.tokenize import train_tokenizer

    train_tokenizer(path, out, vocabulary, overwrite)


@app.command()
def encode(
    tokenizer: AnyTokenizer,
    files: TextFiles = None,
    lines: Lines = False,
    specials: SpecialNames = False,
    json: PrintJson = False,
) -> None:
    """Print the token ids of texts, a line for each."""
    from culm.verbs.tokenize_text import encode_texts

    encode_texts(tokenizer, files or [], lines, specials, json)


@app.command()
def decode(
    tokenizer: AnyTokenizer,
    files: TextFiles = None,
    lines: Lines = False,
    specials: SpecialNames = False,
) -> None:
    """Print the text of token ids."""
    from culm.verbs.tokenize_text import decode_ids

    decode_ids(tokenizer, files or [], lines, specials)


@app.command()
def compare(
    tokenizers: Tokenizers,
    text: ComparedTexts,
    json: PrintJson = False,
) -> None:
    """Print how well tokenizers compress texts, and how fast they are."""
    from culm.verbs.tokenize_text import compare_tokenizers

    compare_tokenizers(tokenizers, text, json)
