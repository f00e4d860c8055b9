"""The rotary settings of a `config.json`: one mapping in transformers 5, two fields in 4."""

from __future__ import annotations

from typing import Any

from culm.config import SettingError
from culm.model.rope import Rope

# kind here and there: our setting -> theirs
FIELDS = {
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low": "low_freq_factor",
        "high": "high_freq_factor",
        "original": "original_max_position_embeddings",
    },
    "yarn": {
        "factor": "factor",
        "original": "original_max_position_embeddings",
        "fast": "beta_fast",
        "slow": "beta_slow",
        "attention": "attention_factor",
        "truncate": "truncate",
    },
}


def read_rope(left: dict[str, Any]) -> dict[str, Any]:
    """Take the rotary settings out of `left`; gives the values of our `Rope`.

    Raises:
        SettingError: a kind or a field that is not known here.
    """
    older = left.pop("rope_scaling", None)
    given = left.pop("rope_parameters", None) or older or {}
    if not isinstance(given, dict):
        raise SettingError(f"rope_parameters: {given!r} is no mapping")
    rope = {"rope_theta": left.pop("rope_theta", 10_000.0), **given}
    base, kind = rope.pop("rope_theta"), rope.pop("type", "default")
    kind = rope.pop("rope_type", kind)
    values: dict[str, Any] = {"base": base}
    if kind in FIELDS:
        names = {theirs: ours for ours, theirs in FIELDS[kind].items()}
        known = {names[name]: rope.pop(name) for name in list(rope) if name in names}
        if kind == "yarn":
            known.setdefault("original", left["max_position_embeddings"])
        values["scaling"] = {"kind": kind, **known}
    elif kind != "default":
        raise SettingError(f"rope_parameters: rope_type {kind!r} is not one of {', '.join(FIELDS)}")
    if unknown := [name for name, value in rope.items() if value is not None]:
        raise SettingError(f"rope_parameters: {', '.join(unknown)} are not known here")
    return values


def rope_fields(rope: Rope) -> dict[str, Any]:
    """What `config.json` says of it.

    Raises:
        SettingError: transformers has no such scaling.
    """
    theirs: dict[str, Any] = {"rope_type": "default"}
    if rope.scaling is not None:
        values = rope.scaling.model_dump(exclude_none=True)
        kind = values.pop("kind")
        if kind not in FIELDS:
            raise SettingError(
                f"model.attention.rope.scaling: transformers has no {kind!r} of a fixed factor; "
                "a greater base says the same"
            )
        theirs = {"rope_type": kind} | {FIELDS[kind][name]: v for name, v in values.items()}
    # `rope_theta` and `rope_scaling` is where transformers 4 and vLLM read them.
    fields = {"rope_theta": rope.base, "rope_parameters": {**theirs, "rope_theta": rope.base}}
    return fields if rope.scaling is None else {**fields, "rope_scaling": theirs}
