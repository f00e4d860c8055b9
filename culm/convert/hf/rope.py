"""The rotary settings of a `config.json`: mappings in transformers 5, several fields in 4."""

from __future__ import annotations

from typing import Any

from culm.config import SettingError
from culm.convert.family import Fields
from culm.model.rope import Rope

# kind here and there: our setting -> theirs
KINDS = {
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

# Fields that the other kinds do not read, or that only tell how a model was trained.
ORIGINAL = "original_max_position_embeddings"
NEUTRAL = (ORIGINAL, "finetuned")


def read_rope(fields: Fields, context: int, partial: bool = False) -> dict[str, Any]:
    """Values of our `Rope`, one for all layers.

    partial: whether the family can rotate a part of a head; in others transformers ignores that.

    Raises:
        SettingError: a kind or a field is not known.
    """
    given = take_mapping(fields)
    base = fields.take("rope_theta", 10_000.0)
    fraction = fields.take("partial_rotary_factor", 1.0)
    own = {"rope_theta": base, "partial_rotary_factor": fraction}
    if (original := fields.take(ORIGINAL, None)) is not None:
        given = {**given, ORIGINAL: original}  # as in transformers, the one outside counts
    return rope_of({**own, **given}, context, partial)


def take_mapping(fields: Fields, kind: str | None = None) -> dict[str, Any]:
    """`rope_parameters`, or `rope_scaling` where there is none. kind: of the layers that an older
    file scales, where there is a mapping for each kind.

    Raises:
        SettingError: both are there and contradict each other.
    """
    given = _mapping(fields.take("rope_parameters", None) or {})
    older = _mapping(fields.take("rope_scaling", None) or {})
    scaled = _mapping(given[kind] or {}) if kind in given else given
    if given and older and _scaling(scaled) != _scaling(older):
        raise SettingError(
            "rope_scaling: it contradicts rope_parameters; remove the one that the model was not "
            "trained with"
        )
    return given or older


def _scaling(given: dict[str, Any]) -> dict[str, Any]:
    """What a mapping says of the scaling, with the newer name of its kind."""
    others = ("type", "rope_type", "rope_theta", "partial_rotary_factor")
    kind = given.get("rope_type", given.get("type", "default"))
    left = {n: v for n, v in given.items() if v is not None and n not in others}
    return {"rope_type": kind, **left}


def read_ropes(
    fields: Fields, context: int, *kinds: str, local: float | None = None
) -> list[dict[str, Any]]:
    """The same for each kind of layer, the one without a window first.

    Files of transformers 4 contain one, whose scaling is only for that kind. local: the base of the
    other kinds there, if it differs.
    """
    given = take_mapping(fields, kinds[0])
    if not any(kind in given for kind in kinds):
        given = {kinds[0]: given}
    base = fields.take("rope_theta", 10_000.0)
    bases = {kinds[0]: base, **dict.fromkeys(kinds[1:], base if local is None else local)}
    return [
        rope_of({"rope_theta": bases[kind], **_mapping(given.get(kind) or {})}, context)
        for kind in kinds
    ]


def rope_of(given: dict[str, Any], context: int, partial: bool = False) -> dict[str, Any]:
    """Values of our `Rope` for one of their mappings; partial: as in `read_rope`."""
    rope = {"rope_theta": 10_000.0, **given}
    values: dict[str, Any] = {"base": rope.pop("rope_theta")}
    kind = rope.pop("type", "default")
    kind = rope.pop("rope_type", kind)
    if (fraction := rope.pop("partial_rotary_factor", 1.0)) != 1.0:
        if not partial:
            raise SettingError(
                f"partial_rotary_factor: transformers ignores {fraction!r}: this family rotates "
                "full heads; remove it or choose another model_type"
            )
        values["fraction"] = fraction
    if isinstance(kind, str) and kind in KINDS:
        names = {theirs: ours for ours, theirs in KINDS[kind].items()}
        known = {names[name]: rope.pop(name) for name in list(rope) if name in names}
        if "original" in KINDS[kind]:
            known.setdefault("original", context)
        values["scaling"] = {"kind": kind, **known}
    elif kind != "default":  # a list or mapping too
        raise SettingError(
            f"rope_parameters: rope_type {kind!r} is not read here, only {', '.join(KINDS)}; "
            "choose a model with one of these"
        )
    unknown = [name for name, value in rope.items() if value is not None and name not in NEUTRAL]
    if unknown:
        raise SettingError(
            f"rope_parameters: {', '.join(unknown)} are not known here for {kind}; remove them if "
            "the model does not need them"
        )
    return values


def _mapping(given: Any) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise SettingError(f"rope_parameters: {given!r} is not a mapping")
    return given


def rope_fields(rope: Rope) -> dict[str, Any]:
    """The fields of `config.json` for one rotary embedding in all layers."""
    theirs = rope_mapping(rope)
    # transformers 4 and vLLM read `rope_theta` and `rope_scaling`.
    fields = {"rope_theta": rope.base, "rope_parameters": theirs}
    scaling = {name: value for name, value in theirs.items() if name != "rope_theta"}
    return fields if rope.scaling is None else {**fields, "rope_scaling": scaling}


def rope_mapping(rope: Rope) -> dict[str, Any]:
    """One mapping of `rope_parameters`.

    Raises:
        SettingError: transformers has no such scaling.
    """
    theirs: dict[str, Any] = {"rope_type": "default"}
    if rope.scaling is not None:
        values = rope.scaling.model_dump(exclude_none=True)
        kind = values.pop("kind")
        if kind not in KINDS:
            raise SettingError(
                f"model.attention.rope.scaling: transformers has no {kind!r} of a fixed factor; "
                "a larger base is equivalent"
            )
        theirs = {"rope_type": kind} | {KINDS[kind][name]: v for name, v in values.items()}
    if rope.fraction != 1.0:
        theirs["partial_rotary_factor"] = rope.fraction
    return {**theirs, "rope_theta": rope.base}
