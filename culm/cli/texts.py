"""Commands that make a corpus of texts. Nothing heavy is imported before one runs."""

from __future__ import annotations

from typing import Annotated

import typer

from culm.cli import arguments as given
from culm.cli import tokenize

app = typer.Typer()
PANEL = "Prepare texts"

app.add_typer(tokenize.app, rich_help_panel=PANEL)

Texts = Annotated[
    list[str],
    typer.Argument(
        help="Files, folders, stdlib, or a Hugging Face dataset id; and settings of the data as in "
        "a run, such as data.invalid=skip."
    ),
]
TokenizerFolder = Annotated[str, typer.Option(help="A folder with a tokenizer.")]
CorpusOut = Annotated[str, typer.Option(help="Folder of the prepared corpus.")]
RecordFormat = Annotated[
    str | None,
    typer.Option(
        help="document, chat, pair, ranking, label, steps or prompt; by default what the first "
        "records look like."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no samples before the work.")]
DocumentSplit = Annotated[
    str, typer.Option(help="Unit of a document in text files: file, paragraphs or lines.")
]
HeldOut = Annotated[float, typer.Option(help="Fraction held out for evaluation, up to 0.5.")]
PositiveTexts = Annotated[
    list[str], typer.Option("--positive", help="Texts as they should be; may be repeated.")
]
NegativeTexts = Annotated[
    list[str], typer.Option("--negative", help="Texts to drop; may be repeated.")
]
ClassifierOut = Annotated[str, typer.Option(help="File of the new classifier (.safetensors).")]


@app.command(rich_help_panel=PANEL)
def prepare(
    path: Texts,
    tokenizer: TokenizerFolder,
    out: CorpusOut,
    format: RecordFormat = None,
    split: DocumentSplit = "file",
    held_out: HeldOut = 0.02,
    seed: given.Seed = 0,
    overwrite: given.Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write texts as token shards with a manifest; `data.prepared=OUT` trains on them."""
    from culm.verbs.prepare import prepare_corpus

    prepare_corpus(path, tokenizer, out, format, split, held_out, seed, overwrite, quiet)


@app.command(rich_help_panel=PANEL)
def classifier(
    positive: PositiveTexts,
    negative: NegativeTexts,
    out: ClassifierOut,
    settings: given.Settings = None,
    seed: given.Seed = 0,
    overwrite: given.Overwrite = False,
) -> None:
    """Train a classifier of good and bad texts, for `data.clean`."""
    from culm.verbs.classifier import train_classifier

    train_classifier(positive, negative, out, settings or (), seed, overwrite)
