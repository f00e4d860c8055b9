"""Whether a tokenizer fits a model and the programs that it is exported for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers

from culm.config import SettingError
from culm.log import say
from culm.tokenizer.added import DECODER, EXTRA
from culm.tokenizer.chat import token_name
from culm.tokenizer.tokenizer import Tokenizer


def check_vocabulary(tokenizer: Tokenizer, rows: int, source: str | Path) -> None:
    """Check that every id has a row in the embedding; more rows are padding.

    Raises:
        SettingError: naming the source.
    """
    if tokenizer.vocabulary > rows:
        ids = f"the tokenizer has {tokenizer.vocabulary} ids"
        raise SettingError(
            f"{source}: {ids}, the model's vocabulary only {rows}; use the tokenizer that the "
            "model was trained with"
        )


def refuse_words(tokenizer: Tokenizer, program: str) -> None:
    """Refuse to export a tokenizer that another program could not follow.

    Raises:
        SettingError: spaCy splits its text into words.
    """
    if tokenizer.words is not None:
        raise SettingError(
            f"tokenizer: {program} cannot split text into words as spaCy does, so its ids would "
            "differ; train the model with tokenizer.kind=bpe or sentencepiece to export it"
        )


def within_rows(tokenizer: Tokenizer, rows: int, source: str | Path) -> Tokenizer:
    """The tokenizer without added tokens that have no row, such as a `[PAD]` that was added later.

    The model can neither read nor generate them.

    Raises:
        SettingError: a token that is not an added one has no row, or no token ends a text then.
    """
    parts = json.loads(tokenizer.json)
    beyond = {token["content"] for token in parts["added_tokens"] if token["id"] >= rows}
    if not beyond:
        check_vocabulary(tokenizer, rows, source)
        return tokenizer
    parts["added_tokens"] = [t for t in parts["added_tokens"] if t["content"] not in beyond]
    if isinstance(vocabulary := parts["model"].get("vocab"), dict):
        parts["model"]["vocab"] = {n: id for n, id in vocabulary.items() if n not in beyond}
    frame = json.dumps(parts["post_processor"], ensure_ascii=False)
    if any(json.dumps(name, ensure_ascii=False) in frame for name in beyond):
        parts["post_processor"] = None  # it would put them around every text
    inner = tokenizers.Tokenizer.from_str(json.dumps(parts, ensure_ascii=False))
    stops = [id for id in tokenizer.stop_ids if id < rows]
    settings = _without(tokenizer.settings, beyond)
    if settings.get("end_of_text_id", 0) >= rows:
        del settings["end_of_text_id"]
    ids = {key: id for key, id in tokenizer.generation.items() if key.endswith("_token_id")}
    lost = {key for key, id in ids.items() if type(id) is int and id >= rows}
    generation = {key: value for key, value in tokenizer.generation.items() if key not in lost}
    try:
        made = Tokenizer(inner, settings, tokenizer.template, stops, generation)
    except SettingError as error:
        raise SettingError(f"{source}: without the tokens beyond its rows: {error}") from None
    check_vocabulary(made, rows, source)
    say(
        f"{source}: {', '.join(sorted(beyond))} left out: the model has {rows} rows in its "
        "embedding, and none for them."
    )
    return made


def _without(settings: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """The settings of a tokenizer without these tokens."""
    kept = {key: value for key, value in settings.items() if not _names(value, names)}
    if DECODER in kept:
        listed = kept[DECODER].items()
        kept[DECODER] = {id: token for id, token in listed if not _names(token, names)}
    for key in EXTRA:
        if isinstance(kept.get(key), list):
            kept[key] = [token for token in kept[key] if not _names(token, names)]
    return kept


def _names(value: Any, names: set[str]) -> bool:
    """Whether a setting is one of the tokens."""
    name = token_name(value)
    return isinstance(name, str) and name in names
