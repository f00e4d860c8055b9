"""Change a built model by swapping its modules, as adapters and quantisers do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import BeforeValidator, Field
from torch import nn

from culm.config import listed
from culm.model.linear import Linear
from culm.model.transformer import Transformer

Match = Callable[[str, nn.Module], bool]
Make = Callable[[str, nn.Module], nn.Module]

# A setting: one or several patterns of layer names, as `linears` reads them.
Patterns = Annotated[tuple[str, ...], BeforeValidator(listed), Field(min_length=1)]


def replace(model: nn.Module, match: Match, make: Make) -> int:
    """Replace every submodule that matches by `make(name, module)`; returns their number.

    Modules inside a matched module are not inspected. Each old module is released before the next
    one is built, so that a model is never in memory twice.

    Raises:
        ValueError: nothing matched.
    """
    names: list[str] = []
    for name, module in model.named_modules():
        inside = names and name.startswith(f"{names[-1]}.")
        if name and not inside and match(name, module):
            names.append(name)
    if not names:
        raise ValueError(f"no module of this {type(model).__name__} is of the kind to replace")
    for name in names:
        model.set_submodule(name, make(name, model.get_submodule(name)))
    return len(names)


def linears(
    model: nn.Module, patterns: Iterable[str], *kinds: type[nn.Module], setting: str = "targets"
) -> Match:
    """Match linear layers of the given kinds (default: plain ones) by name.

    >>> linears(model, ["blocks.*.attention.{q,v}", "head"])     # a star matches any text

    Raises:
        ValueError: a pattern names no such layer.
    """
    kinds = kinds or (Linear,)
    layers = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    chosen: set[str] = set()
    for pattern in patterns:
        named = {n for n in layers for plain in _expand(pattern) if fnmatchcase(n, plain)}
        if not named:
            known = ", ".join(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in layers))
            raise ValueError(f"{setting}: {pattern!r} names no layer; known: {known or 'none'}")
        chosen |= named
    return lambda name, module: name in chosen


def _expand(pattern: str) -> list[str]:
    """`a.{b,c}` as `a.b` and `a.c`."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        return [pattern]
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [p for part in found[1].split(",") for p in _expand(f"{before}{part.strip()}{after}")]


def note_untied(model: Transformer) -> None:
    """Update `model.config.tied` after the head may have been replaced."""
    shared = type(model.head) is Linear and model.head.weight is model.embed.weight
    if model.config.tied and not shared:
        model.config = model.config.model_copy(update={"tied": False})
