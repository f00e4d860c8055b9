"""`culm generate`: the continuation of a text, as it comes; or answers to the prompts of a file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import typer

from culm.config import SettingError
from culm.log import say
from culm.run.reads import digest_of
from culm.source import open_source
from culm.text.answers import Answering, write_answers
from culm.text.language_model import LanguageModel
from culm.text.options import CHAT_TEMPERATURE, GenerationOptions, read_options


def check_arguments(
    prompt: str | None, prompts: Sequence[str] | None, out: str | None, samples: int,
    overwrite: bool,
) -> None:  # fmt: skip
    """Refuse arguments that do not go together, before a model is loaded.

    Raises:
        SettingError: there is no prompt, or an option would have no effect.
    """
    if (prompt is None) == (not prompts):
        raise SettingError("PROMPT: give a text to continue, or --prompts with a file of prompts")
    if prompts and out is None:
        raise SettingError("--out: name the file that the answers go to, such as answers.jsonl")
    if not prompts and (out is not None or samples > 1 or overwrite):
        raise SettingError("--out, --samples and --overwrite have an effect with --prompts only")


def write_continuation(
    model: LanguageModel, prompt: str, max_tokens: int, **options: Unpack[GenerationOptions]
) -> None:
    """Write the prompt and what follows it to standard output."""
    pieces = model.stream(prompt, max_tokens, **options)
    first = next(pieces, None)  # only now is it known that the prompt fits
    sys.stdout.write(prompt + (first or ""))
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    if first is None:
        say("The model ended the text at once, so nothing follows it.")


def write_answer_file(
    model: LanguageModel, name: str, prompts: Sequence[str], out: str, samples: int,
    max_tokens: int, overwrite: bool, **options: Unpack[GenerationOptions],
) -> None:  # fmt: skip
    """Answer the prompts of files with the model of a name; without a seed, with 0.

    temperature: 0 unless given, as in a chat.
    """
    settings = Answering(
        read_options(options, CHAT_TEMPERATURE), samples, max_tokens, options.get("seed") or 0
    )
    target, source = Path(out), open_source(prompts, setting="--prompts")
    reads = {"model": digest_of(name)}
    for remark in write_answers(model, source, target, settings, reads, overwrite):
        typer.echo(remark)
    with target.open(encoding="utf-8") as file:
        typer.echo(f"{target}: {sum(1 for _ in file):,} dialogues")
