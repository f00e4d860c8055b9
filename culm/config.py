"""Settings: strict, frozen models, and errors that say where, what, and what was meant.

`culm.compose` puts the values together, from files and the command line.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)


class SettingError(ValueError):
    """A setting that cannot be used; the message says where, what, and what was meant."""


class UnavailableError(SettingError):
    """What a setting names gave no answer, or ended: to start again may help."""


class Config(BaseModel):
    """Base of every settings class: unknown names are errors and values never change.

    A validator of a subclass raises `ValueError("kv_heads: 3 does not divide heads=8")`: the text
    before the first colon names the setting, and `parse` puts the path in front of it.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        coerce_numbers_to_str=True,  # folder=5 is a name
    )

    @model_validator(mode="before")
    @classmethod
    def _kinds(cls, values: Any) -> Any:
        """Settings of a part without its `kind` are settings of the part that is the default."""
        if not isinstance(values, dict):
            return values
        filled = dict(values)
        for name, field in cls.model_fields.items():
            given, default = values.get(name), field.default
            if isinstance(given, dict) and given and isinstance(default, Config):
                part = type(default).model_fields.get("kind")
                if part is not None and "kind" not in given:
                    filled[name] = {"kind": part.default, **given}
        return filled


def _named(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


def one_of(union: Any) -> Any:
    """The registry of one kind of part: a union by `kind`; the name alone stands for its mapping.

    >>> Optimizer = one_of(AdamW | Muon)     # accepts "adamw" and {"kind": "adamw", "rate": 1e-3}
    """
    if get_origin(union) in (Union, types.UnionType):
        return Annotated[union, Field(discriminator="kind"), BeforeValidator(_named)]
    return Annotated[union, BeforeValidator(_named)]


def refuse_unused(config: BaseModel, name: str, used: bool, needed: str) -> None:
    """Refuse a setting that others leave without effect. needed: what would give it one.

    Raises:
        ValueError: it has another value than by default.
    """
    if not used and dict(config)[name] != type(config).model_fields[name].default:
        raise ValueError(f"{name}: it has an effect with {needed} only")


def kind_unless_given(kind: str) -> BeforeValidator:
    """For a part whose default is None: settings without a kind are settings of this kind."""

    def fill(value: Any) -> Any:
        return {"kind": kind, **value} if isinstance(value, dict) and value else value

    return BeforeValidator(fill)


def listed(value: Any) -> Any:
    """For a field that is a list: one part alone becomes a list of one."""
    return value if isinstance(value, list | tuple) else [value]


def some_of(union: Any) -> Any:
    """One part of `one_of`, or a list of them; the value is a tuple.

    >>> Quantizers = some_of(Int8 | Int4)     # accepts "int8" and ["int8", {"kind": "int4"}]
    """
    return Annotated[tuple[one_of(union), ...], BeforeValidator(listed), Field(min_length=1)]  # type: ignore[misc]


@dataclass(frozen=True)
class MayChange:
    """Marks a setting that may change when a run resumes; every other one is fixed, since what is
    in its checkpoints depends on it. but: parts of it that are fixed all the same.
    """

    but: tuple[str, ...] = ()


MAY_CHANGE = MayChange()


# ---------------------------------------------------------------------------------------------
# Parsing: a mapping -> a frozen model, with errors in plain words

T = TypeVar("T")

# Types of pydantic's errors, without `_type` and `_parsing`.
PLAIN = {
    "int": "a whole number",
    "int_from_float": "a whole number",
    "float": "a number",
    "finite_number": "a finite number",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list",
    "list": "a list",
    "dict": "a mapping of settings",
    "model": "a mapping of settings",
    "path": "a path",
}

# What pydantic calls the branches of a union that are no settings.
SIMPLE = re.compile(r"(constrained-)?(int|float|str|bool)|.*\[.*")


def parse(kind: type[T], values: Any, where: str = "") -> T:
    """`values` as a `kind`; every problem is named by its path.

    Raises:
        SettingError: `model.attention.kv_heads: 3 does not divide heads=8`.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        problems = [_sentence(kind, problem, where) for problem in _telling(error, kind)]
        raise SettingError("\n".join(dict.fromkeys(problems))) from None


def _telling(error: ValidationError, kind: Any) -> Iterator[Any]:
    """The problems that are one: -1 for a number or a mapping is too small, and no mapping is
    missed.
    """
    found = [(_path(kind, problem["loc"], ""), problem) for problem in error.errors()]
    valued = {path for path, one in found if not one["type"].endswith(("_type", "_parsing"))}
    for path, problem in found:
        if not (problem["type"] in ("model_type", "dict_type") and path in valued):
            yield problem


def _sentence(kind: Any, problem: Any, where: str) -> str:
    path = _path(kind, problem["loc"], where)
    match problem["type"]:
        case "extra_forbidden":
            wrong = str(problem["loc"][-1])
            return (
                f"{path}: no such setting{did_you_mean(wrong, _names(kind, problem['loc'][:-1]))}"
            )
        case "missing":
            return f"{path}: this setting is needed"
        case "union_tag_invalid":
            tag, known = problem["ctx"]["tag"], problem["ctx"]["expected_tags"]
            return f"{path}.kind: {tag!r} is not one of {known}"
        case "union_tag_not_found":
            kinds = sorted(set().union(*map(_kind, _models(kind, problem["loc"]))))
            return f"{path}.kind: this setting is needed; it is one of {', '.join(kinds)}"
        case "value_error":
            text = str(problem["ctx"]["error"])
            joint = "." if path and re.match(r"[a-z_]+(\[\d+\])?(\.[a-z_]+)*: ", text) else ": "
            return f"{path}{joint}{text}" if path else text
        case _:
            given = problem["input"]
            shown = f" (given: {given!r})" if not isinstance(given, dict | Config) else ""
            return f"{path}: {_in_words(problem)}{shown}"


def _in_words(problem: Any) -> str:
    """What a value should be, for somebody who does not know the names of types."""
    kind = problem["type"].removesuffix("_parsing").removesuffix("_type")
    if kind in PLAIN:
        return f"this is not {PLAIN[kind]}"
    text = problem["msg"].replace("Input should be", "it should be")
    return text[0].lower() + text[1:]


def _path(kind: Any, places: Sequence[str | int], where: str) -> str:
    """The dotted path of a problem, without the branches of unions, which pydantic names too."""
    path, here, keyed = where, list(alternatives(kind)), False
    for part in places:
        fields = [m.model_fields[str(part)] for m in here if str(part) in m.model_fields]
        if isinstance(part, int):
            path += f"[{part}]"
        elif keyed or fields or not (SIMPLE.fullmatch(part) or any(part in _kind(m) for m in here)):
            path += f".{part}" if path else part
        keyed = any(_is_mapping(field.annotation) for field in fields)
        if fields:
            here = [model for field in fields for model in alternatives(field.annotation)]
    return path


def _is_mapping(annotation: Any) -> bool:
    """Whether the next place is a name that the user chose."""
    origin = get_origin(annotation)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _models(kind: Any, path: Sequence[str | int]) -> list[type[BaseModel]]:
    """The settings classes that are possible where the path leads."""
    here = list(alternatives(kind))
    for part in path:
        fields = [m.model_fields[part] for m in here if part in m.model_fields]
        if fields:
            here = [model for field in fields for model in alternatives(field.annotation)]
        else:  # an index, or the kind that was chosen
            here = [model for model in here if part in _kind(model)] or here
    return here


def _names(kind: Any, path: Sequence[str | int]) -> list[str]:
    """The settings there are where the path leads."""
    return sorted({name for model in _models(kind, path) for name in model.model_fields})


def alternatives(kind: Any) -> Iterator[type[BaseModel]]:
    """The settings classes that an annotation names, without those inside of them."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    else:
        for part in get_args(kind):
            yield from alternatives(part)


def _kind(model: type[BaseModel]) -> set[str]:
    field = model.model_fields.get("kind")
    return set() if field is None else {str(tag) for tag in get_args(field.annotation)}


def did_you_mean(wrong: str, known: Sequence[str]) -> str:
    """The end of an error: the known name that is closest to the wrong one, or all of them."""
    close = difflib.get_close_matches(wrong, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
