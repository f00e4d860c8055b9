"""Settings: YAML files that compose into strict, frozen models.

A section is a mapping or the name of a file in `configs/<section>/`; `base:` inherits; dotted
`name=value` settings have the last word. There is no interpolation and no code in a file.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

CONFIGS = Path(__file__).parent / "configs"
SECTIONS = ("model", "data", "train", "parallel", "eval")


class SettingError(ValueError):
    """A setting that cannot be used; the message says where, what, and what was meant."""


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


def _named(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


def one_of(union: Any) -> Any:
    """The registry of a kind of part: a union told apart by `kind`; a bare name may stand for it.

    >>> Optimizer = one_of(AdamW | Muon)     # accepts "adamw" and {"kind": "adamw", "rate": 1e-3}
    """
    if get_origin(union) in (Union, types.UnionType):
        return Annotated[union, Field(discriminator="kind"), BeforeValidator(_named)]
    return Annotated[union, BeforeValidator(_named)]


def listed(value: Any) -> Any:
    """For a field that is a list, where one part alone may stand for a list of one."""
    return value if isinstance(value, list | tuple) else [value]


def some_of(union: Any) -> Any:
    """One part of `one_of`, or a list of such; it becomes a tuple.

    >>> Quantizers = some_of(Int8 | Int4)     # accepts "int8" and ["int8", {"kind": "int4"}]
    """
    return Annotated[tuple[one_of(union), ...], BeforeValidator(listed), Field(min_length=1)]  # type: ignore[misc]


# ---------------------------------------------------------------------------------------------
# Composition: files -> one mapping, with the origin of every value


def find(name: str | Path, section: str) -> Path:
    """The file that `name` means: a path, or a file of the section with or without `.yaml`."""
    given = Path(name)
    for path in (
        given,
        CONFIGS / section / f"{name}.yaml",
        CONFIGS / section / given,
        CONFIGS.parent / given,  # `configs/run/demo.yaml` works outside a clone too
        given / f"{section}.yaml",  # a run folder holds its own run file
    ):
        if path.is_file():
            return path
    known = sorted(p.stem for p in (CONFIGS / section).glob("*.yaml"))
    raise SettingError(f"{section}: there is no {str(name)!r}{_meant(given.stem, known)}")


class _Loader(yaml.SafeLoader):
    """YAML in which a name may not be given twice: the second would silently win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(key, deep) for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.YAMLError(f"{name!r} is given twice")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        detail = " ".join(str(error).split())
        raise SettingError(f"{path}: not readable as YAML: {detail}") from error
    if values is None:
        raise SettingError(f"{path}: the file is empty; it should hold settings")
    if not isinstance(values, dict):
        raise SettingError(f"{path}: expected a mapping of settings, found {type(values).__name__}")
    return values


def merge(
    below: Mapping[str, Any], above: Mapping[str, Any], words: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """`above` laid over `below`; mappings merge unless their `kind` differs, all else replaces.

    words: what a word that stands for a mapping is in it, by name; `kind`, where nothing is said.
    """
    merged = dict(below)
    for name, value in above.items():
        old, means = merged.get(name), (words or {}).get(name, "kind")
        if isinstance(old, str) and isinstance(value, Mapping) and means not in value:
            old = {means: old}
        if isinstance(old, Mapping) and isinstance(value, Mapping) and _same_kind(old, value):
            merged[name] = merge(old, value)
        else:
            merged[name] = value
    return merged


def _same_kind(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return "kind" not in old or "kind" not in new or old["kind"] == new["kind"]


def leaves(values: Any, prefix: str = "") -> Iterator[str]:
    """The dotted name of every value in nested mappings."""
    if isinstance(values, Mapping) and values:
        for name, value in values.items():
            yield from leaves(value, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix


class Composed(typing.NamedTuple):
    """Values of a run before parsing, and where each dotted name came from."""

    values: dict[str, Any]
    origins: dict[str, str]


def compose(name: str | Path, section: str) -> Composed:
    """One section file with everything that it inherits by `base:`."""
    path = find(name, section)
    return _inherit(read_yaml(path), section, str(name), (path,))


def _inherit(
    values: Mapping[str, Any], section: str, origin: str, seen: tuple[Path, ...]
) -> Composed:
    own = {key: value for key, value in values.items() if key != "base"}
    origins = dict.fromkeys(leaves(own), origin)
    if "base" not in values:
        return Composed(own, origins)
    if not isinstance(values["base"], str):
        raise SettingError(f"{section}.base: expected the name of one file: {values['base']!r}")
    path = find(values["base"], section)
    if path in seen:
        raise SettingError(
            f"{section}.base: {' -> '.join(p.stem for p in (*seen, path))} is a circle"
        )
    below = _inherit(read_yaml(path), section, str(values["base"]), (*seen, path))
    words = dict.fromkeys(SECTIONS, "base") if section == "run" else None
    return _composed(merge(below.values, own, words), {**below.origins, **origins})


def _composed(values: dict[str, Any], origins: Mapping[str, str]) -> Composed:
    """Without the origins of what another kind has replaced."""
    return Composed(values, {leaf: origins[leaf] for leaf in leaves(values) if leaf in origins})


def compose_run(name: str | Path | None, settings: Sequence[str] = ()) -> Composed:
    """A run file, its sections filled in, and `name=value` settings laid over them."""
    run = compose(name, "run") if name is not None else Composed({}, {})
    values, origins = dict(run.values), dict(run.origins)
    pairs = [_split(setting) for setting in settings]
    for dotted, value in pairs:
        if "." not in dotted:
            values[dotted] = value
            origins = {k: v for k, v in origins.items() if k.split(".")[0] != dotted}
            origins[dotted] = "command line"
    for section in SECTIONS:
        given = values.get(section)
        if isinstance(given, str):
            filled = compose(given, section)
        elif isinstance(given, Mapping):
            filled = _inherit(given, section, origins.get(section, str(name)), ())
        elif given is None:
            continue
        else:
            raise SettingError(f"{section}: expected settings or the name of a file: {given!r}")
        values[section] = filled.values
        origins.pop(section, None)
        origins.update({f"{section}.{leaf}": source for leaf, source in filled.origins.items()})
    # All of them first become one layer, so that their order does not matter.
    layer: dict[str, Any] = {}
    for dotted, value in pairs:
        if "." in dotted:
            for part in reversed(dotted.split(".")):
                value = {part: value}
            layer = merge(layer, value)
    origins.update(dict.fromkeys(leaves(layer), "command line"))
    return _composed(merge(values, layer), origins)


def _split(setting: str) -> tuple[str, Any]:
    name, equals, text = setting.partition("=")
    if not equals or not name:
        raise SettingError(f"{setting!r}: expected name=value, as in train.steps=100")
    value = read_value(name, text)
    commented = isinstance(value, str) and " #" in text and text[0] not in "\"'"
    return name, text if commented else value  # a path such as "my #1 run" is no comment


def read_value(name: str, text: str) -> Any:
    """What a setting on the command line says: a word, a number, a `{mapping}` or a `[list]`."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise SettingError(f"{name}: {text!r} is not readable as YAML") from error


# ---------------------------------------------------------------------------------------------
# Parsing: a mapping -> a frozen model, with errors in plain words

T = TypeVar("T")


def parse(kind: type[T], values: Any, where: str = "") -> T:
    """`values` as a `kind`; every problem is named by its path.

    Raises:
        SettingError: `model.attention.kv_heads: 3 does not divide heads=8`.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        problems = [_sentence(kind, problem, where) for problem in error.errors()]
        raise SettingError("\n".join(dict.fromkeys(problems))) from None


def _sentence(kind: Any, problem: Any, where: str) -> str:
    path = _path(kind, problem["loc"], where)
    match problem["type"]:
        case "extra_forbidden":
            wrong = str(problem["loc"][-1])
            return f"{path}: no such setting{_meant(wrong, _names(kind, problem['loc'][:-1]))}"
        case "missing":
            return f"{path}: this setting is needed"
        case "union_tag_invalid":
            tag, known = problem["ctx"]["tag"], problem["ctx"]["expected_tags"]
            return f"{path}.kind: {tag!r} is not one of {known}"
        case "union_tag_not_found":
            return f"{path}.kind: this setting is needed"
        case "value_error":
            text = str(problem["ctx"]["error"])
            joint = "." if path and re.match(r"[a-z_]+(\[\d+\])?(\.[a-z_]+)*: ", text) else ": "
            return f"{path}{joint}{text}" if path else text
        case _:
            given = problem["input"]
            shown = f" (given: {given!r})" if not isinstance(given, dict | Config) else ""
            return f"{path}: {problem['msg'][0].lower()}{problem['msg'][1:]}{shown}"


def _path(kind: Any, places: Sequence[str | int], where: str) -> str:
    """The dotted path of a problem, without the branches of unions, which pydantic names too."""
    path, here, keyed = where, list(_alternatives(kind)), False
    for part in places:
        fields = [m.model_fields[str(part)] for m in here if str(part) in m.model_fields]
        if isinstance(part, int):
            path += f"[{part}]"
        elif keyed or fields or not ("[" in part or any(part in _kind(m) for m in here)):
            path += f".{part}" if path else part
        keyed = any(_is_mapping(field.annotation) for field in fields)
        if fields:
            here = [model for field in fields for model in _alternatives(field.annotation)]
    return path


def _is_mapping(annotation: Any) -> bool:
    """Whether the next place is a name that the user chose."""
    origin = get_origin(annotation)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _names(kind: Any, path: Sequence[str | int]) -> list[str]:
    """The settings there are where the path leads."""
    here = list(_alternatives(kind))
    for part in path:
        fields = [m.model_fields[part] for m in here if part in m.model_fields]
        if fields:
            here = [model for field in fields for model in _alternatives(field.annotation)]
        else:  # an index, or the kind that was chosen
            here = [model for model in here if part in _kind(model)] or here
    return sorted({name for model in here for name in model.model_fields})


def _alternatives(kind: Any) -> Iterator[type[BaseModel]]:
    """The settings classes that an annotation names, without those inside of them."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    else:
        for part in get_args(kind):
            yield from _alternatives(part)


def _kind(model: type[BaseModel]) -> set[str]:
    field = model.model_fields.get("kind")
    return set() if field is None else {str(tag) for tag in get_args(field.annotation)}


def _meant(wrong: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(wrong, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
