"""`culm schema`: the JSON schema of run files, with what each setting means."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

from culm.config import Config
from culm.run.settings import RunConfig


def schema() -> dict[str, Any]:
    """The schema of a run file; every setting that a docstring explains has a description."""
    found = RunConfig.model_json_schema()
    for model in dict.fromkeys(_models(RunConfig)):
        place = found if model is RunConfig else found["$defs"].get(model.__name__)
        if place is None:
            continue
        about, meanings = described(model)
        place["description"] = about
        for name, meaning in meanings.items():
            place["properties"][name]["description"] = meaning
    return found


def _models(annotation: Any, seen: frozenset[type] = frozenset()) -> Iterator[type[BaseModel]]:
    """All settings classes that an annotation leads to."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation in seen:
            return
        yield annotation
        for field in annotation.model_fields.values():
            yield from _models(field.annotation, seen | {annotation})
    for part in get_args(annotation):
        yield from _models(part, seen)


def described(model: type[BaseModel]) -> tuple[str, dict[str, str]]:
    """What the docstring says of the class, and of each setting (`name: its meaning.`)."""
    meanings: dict[str, str] = {}
    about = ""
    for kind in reversed(model.__mro__):
        if issubclass(kind, BaseModel) and kind not in (BaseModel, Config):
            about, own = split(kind.__doc__ or "", set(model.model_fields))
            meanings |= own
    return about, meanings


def split(text: str, names: set[str]) -> tuple[str, dict[str, str]]:
    """A docstring in its general part and the meaning of each name."""
    listing = rf"(?:{'|'.join(map(re.escape, sorted(names)))})"
    start = re.compile(rf"(?:^|(?<=[.;] ))({listing}(?:, {listing})*): ")
    about, meanings = [], {}
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        flat = re.sub(r"(?<=\S)\n\s*(?=" + listing + r"(?:, " + listing + r")*: )", ". ", paragraph)
        flat = re.sub(r"\s*\n\s*", " ", flat).strip().replace(".. ", ". ").replace(";. ", "; ")
        general, *pairs = start.split(flat)
        about.append(general.strip())
        for found, meaning in zip(pairs[::2], pairs[1::2], strict=True):
            for name in found.split(", "):
                meanings[name] = sentence(meaning)
    return "\n\n".join(part for part in about if part), meanings


def sentence(meaning: str) -> str:
    """With a capital, unless it begins with a name in code, and a full stop."""
    text = meaning.strip().rstrip(";.") + "."
    return text[0].upper() + text[1:] if re.match(r"[a-z-]+[ ,;:]", text) else text
