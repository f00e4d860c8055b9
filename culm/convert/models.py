"""Every kind of model that a run file may name and a folder may hold: this union is the registry.

A model without a `kind` is a transformer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Tag

from culm.concept.model import ConceptsConfig
from culm.model.transformer import TransformerConfig

PLAIN = "transformer"
OTHERS = ("concepts",)


def _plain(value: Any) -> Any:
    """Settings of a transformer without their kind, which its class does not have."""
    if not isinstance(value, Mapping) or "kind" not in value:
        return value
    kind = value["kind"]
    if kind not in (PLAIN, *OTHERS):
        raise ValueError(f"kind: {kind!r} is not one of {', '.join((PLAIN, *OTHERS))}")
    if kind == PLAIN:
        return {name: given for name, given in value.items() if name != "kind"}
    return value


def _tag(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if isinstance(value, ConceptsConfig):
        kind = value.kind
    return f"[{kind or PLAIN}]"  # never shown


Model = Annotated[
    Annotated[TransformerConfig, Tag("[transformer]")]
    | Annotated[ConceptsConfig, Tag("[concepts]")],
    Discriminator(_tag),
    BeforeValidator(_plain),
]
