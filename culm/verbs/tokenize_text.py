"""`culm tokenize encode | decode | compare`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from culm.config import SettingError
from culm.data.texts import texts_of
from culm.source.source import bytes_in
from culm.tokenizer.compare import Compression, compression
from culm.tokenizer.read import KNOWN, read_tokenizer
from culm.tokenizer.tokenizer import Tokenizer
from culm.verbs.corpus import corpus_of

STDIN = "standard input"


def encode_texts(
    tokenizer: str, paths: Sequence[str], lines: bool, specials: bool, as_json: bool
) -> None:
    """Print the ids of each text on a line. paths: files, each a text; standard input if none.

    lines: each line is a text. specials: read the names of special tokens. as_json: a list.

    Raises:
        SettingError: a tokenizer or file cannot be read.
    """
    encoder = _read(tokenizer)
    for name, content in _inputs(paths):
        text = _decoded(name, content)
        for one in _lines(text) if lines else [text]:
            ids = encoder.encode(one, specials=specials)
            typer.echo(json.dumps(ids) if as_json else " ".join(map(str, ids)))


def decode_ids(tokenizer: str, paths: Sequence[str], lines: bool, specials: bool) -> None:
    """Print the text of ids, exactly. paths: files with ids; standard input if none.

    lines: each line of ids is a text, and a line break is printed after it. specials: show special
    tokens.

    Raises:
        SettingError: a tokenizer or file cannot be read, or a number is no id.
    """
    decoder = _read(tokenizer)
    for name, content in _inputs(paths):
        text = _decoded(name, content)
        for number, line in enumerate(_lines(text) if lines else [text], 1):
            where = f"{name}: line {number}" if lines else name
            try:
                found = decoder.decode(_ids(line, where), specials=specials)
            except ValueError as error:
                shown = str(error)
                raise SettingError(shown if where in shown else f"{where}: {shown}") from None
            sys.stdout.buffer.write((found + "\n" * lines).encode())
    sys.stdout.buffer.flush()


def compare_tokenizers(tokenizers: Sequence[str], texts: Sequence[str], as_json: bool) -> None:
    """Print how well each tokenizer compresses texts. texts: paths, or NAME=PATH, where the same
    name stands for several files, such as those of a language.

    Raises:
        SettingError: a tokenizer or text cannot be read.
    """
    groups: dict[str, list[str]] = {}
    for text in texts:
        name, _, path = text.rpartition("=") if not Path(text).exists() else (text, "", text)
        groups.setdefault(name or path, []).append(path)
    read = {name: _read(name) for name in tokenizers}
    rows = [
        (name, group, encoder.vocabulary, compression(encoder, _texts(paths)))
        for group, paths in groups.items()
        for name, encoder in read.items()
    ]
    if as_json:
        named = ("tokenizer", "text", "vocabulary")
        typer.echo(
            json.dumps([dict(zip(named, row, strict=False)) | row[3].facts() for row in rows])
        )
        return
    _show(rows)


def _show(rows: Sequence[tuple[str, str, int, Compression]]) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("text", "tokenizer", "vocabulary", "bytes/token", "tokens/word", "MB/s", "lost"):
        justify: Any = "left" if name in ("text", "tokenizer") else "right"
        table.add_column(name, justify=justify, overflow="fold")
    for tokenizer, text, size, found in rows:
        table.add_row(
            text, tokenizer, f"{size:,}", f"{found.bytes_per_token:.3f}",
            f"{found.tokens_per_word:.3f}", f"{found.megabytes_per_second:.2f}",
            f"{found.unlike} of {found.texts}" if found.unlike else "",
        )  # fmt: skip
    Console(highlight=False, markup=False, soft_wrap=True).print(table)


def _texts(paths: Sequence[str]) -> Iterator[str]:
    data = corpus_of(paths)
    return (text for text in texts_of(data.open(), data.format, data.invalid) if bytes_in(text))


def _read(name: str) -> Tokenizer:
    """The tokenizer of a name; of a .gguf file too, whose weights are not read."""
    if not name.endswith(".gguf"):
        return read_tokenizer(name)
    from culm.convert.gguf.parts import read_parts
    from culm.convert.gguf.tokenizer import load_tokenizer

    if not Path(name).is_file():
        raise SettingError(f"{name}: there is no such tokenizer; known: {KNOWN}, or a .gguf file")
    return load_tokenizer(read_parts(Path(name))[0], name)


def _inputs(paths: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    if not paths:
        yield STDIN, sys.stdin.buffer.read()
    for path in paths:
        try:
            yield path, Path(path).read_bytes()
        except OSError as error:
            raise SettingError(f"{path}: cannot be read: {error.strerror}") from None


def _decoded(name: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise SettingError(f"{name}: byte {error.start} is not UTF-8; convert it first") from None


def _lines(text: str) -> list[str]:
    """Lines that end with a line feed and with nothing else, as `culm tokenize encode` counts."""
    return text.removesuffix("\n").split("\n") if text else []


def _ids(text: str, where: str) -> list[int]:
    """Numbers between spaces, or a list in JSON."""
    try:
        given: Any = json.loads(text) if text.lstrip().startswith("[") else text.split()
        ids = [int(one) for one in given]
    except (ValueError, TypeError):
        raise SettingError(
            f"{where}: not a list of ids, such as 15339 1917 or [15339, 1917]"
        ) from None
    if any(isinstance(one, float | bool) for one in given):
        raise SettingError(f"{where}: an id is a whole number")
    return ids
