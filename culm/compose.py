"""How the values of a run come together: YAML files, and `name=value` settings of a command.

A section is a mapping or the name of a file in `configs/<section>/`; `base:` inherits; dotted
settings on the command line have the last word. There is no interpolation and no code in a file.
Every value carries its origin.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

try:  # in C, where PyYAML was built with libyaml
    from yaml import CSafeLoader as SafeLoader
except ImportError:
    from yaml import SafeLoader  # type: ignore[assignment]

from culm.config import SettingError, did_you_mean

CONFIGS = Path(__file__).parent / "configs"
KIND = ("kind",)


@dataclass(frozen=True)
class Layout:
    """What a plain word in a run file stands for, when other settings are laid over it.

    sections: settings whose word is a file in `configs/<section>/`, that is, their `base`.
    words: for other settings, what their word is, and which settings replace it. With
        `start: (path, hf)`, `runs/x` is `path: runs/x`, unless a `path` or an `hf` is laid over it.

    alternatives: by section, settings of which one is given, each with those that only it reads.
        One that is laid over another takes its place: `data.path=x` over a recipe's `tasks`.

    In all other settings a word is the `kind`.
    """

    sections: Sequence[str] = ()
    words: Mapping[str, Sequence[str]] = field(default_factory=dict)
    alternatives: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)

    @property
    def meanings(self) -> Mapping[str, Sequence[str]]:
        """The same for sections and words."""
        return {**dict.fromkeys(self.sections, ("base",)), **self.words}


class Composed(NamedTuple):
    """Values before they are parsed, and the origin of each dotted name."""

    values: dict[str, Any]
    origins: dict[str, str]


# -- files --------------------------------------------------------------------------------------


def find(name: str | Path, section: str) -> Path:
    """The file that `name` means: a path, or a file of the section with or without `.yaml`."""
    known = sorted(p.stem for p in (CONFIGS / section).glob("*.yaml"))
    if not str(name):
        raise SettingError(f"{section}: name a file, or one of {', '.join(known)}")
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
    if section == "run" and "=" in str(name):
        raise SettingError(f"run: name a run before its settings, as in: pretrain {name}")
    raise SettingError(f"{section}: there is no {str(name)!r}{did_you_mean(given.stem, known)}")


class _Loader(SafeLoader):
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


def read_value(name: str, text: str) -> Any:
    """The value of a setting on the command line: a word, a number, a `{mapping}` or a `[list]`."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise SettingError(f"{name}: {text!r} is not readable as YAML") from error


# -- layers -------------------------------------------------------------------------------------


def merge(
    below: Mapping[str, Any],
    above: Mapping[str, Any],
    meanings: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """`above` laid over `below`; mappings merge unless their `kind` differs, all else replaces.

    meanings: what a word below a mapping stands for, by its name here (`Layout`).
    """
    merged = dict(below)
    for name, value in above.items():
        old, names = merged.get(name), (meanings or {}).get(name, KIND)
        if isinstance(old, str) and isinstance(value, Mapping) and not value.keys() & set(names):
            old = {names[0]: old}
        if isinstance(old, Mapping) and isinstance(value, Mapping) and _same_kind(old, value):
            merged[name] = merge(old, value)
        else:
            merged[name] = value
    return merged


def overlay(
    below: Mapping[str, Any], above: Mapping[str, Any], layout: Layout = Layout()
) -> dict[str, Any]:
    """`above` laid over `below`, two run files or layers of one, as the layout says."""
    kept = dict(below)
    for section, choices in layout.alternatives.items():
        old, new = kept.get(section), above.get(section)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            kept[section] = _unreplaced(old, new, choices)
    return merge(kept, above, layout.meanings)


def _unreplaced(
    old: Mapping[str, Any], new: Mapping[str, Any], choices: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """The old settings of a section, without the alternatives to what the new ones choose."""
    chosen = [name for name in choices if new.get(name)]
    gone = [name for name in choices if chosen and name not in chosen]
    without = {*gone, *(part for name in gone if old.get(name) for part in choices[name])}
    return {name: value for name, value in old.items() if name not in without}


def _same_kind(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return "kind" not in old or "kind" not in new or old["kind"] == new["kind"]


def leaves(values: Any, prefix: str = "") -> Iterator[str]:
    """The dotted name of every value in nested mappings."""
    if isinstance(values, Mapping) and values:
        for name, value in values.items():
            yield from leaves(value, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix


def compose(name: str | Path, section: str, layout: Layout = Layout()) -> Composed:
    """One section file with everything that it inherits by `base:`."""
    path = find(name, section)
    return _inherit(read_yaml(path), section, str(name), (path,), layout)


def _inherit(
    values: Mapping[str, Any],
    section: str,
    origin: str,
    seen: tuple[Path, ...],
    layout: Layout = Layout(),
) -> Composed:
    own = {key: value for key, value in values.items() if key != "base"}
    origins = dict.fromkeys(leaves(own), origin)
    if "base" not in values:
        return Composed(own, origins)
    base = values["base"]
    if not isinstance(base, str):
        raise SettingError(f"{section}.base: expected the name of one file: {base!r}")
    path = find(base, section)
    if path in seen:
        raise SettingError(
            f"{section}.base: {' -> '.join(p.stem for p in (*seen, path))} is a circle"
        )
    below = _inherit(read_yaml(path), section, base, (*seen, path), layout)
    if choices := layout.alternatives.get(section):
        below = Composed(_unreplaced(below.values, own, choices), below.origins)
    return _composed(overlay(below.values, own, layout), {**below.origins, **origins})


def _composed(values: dict[str, Any], origins: Mapping[str, str]) -> Composed:
    """Without the origins of values that another kind has replaced."""
    return Composed(values, {leaf: origins[leaf] for leaf in leaves(values) if leaf in origins})


# -- runs ---------------------------------------------------------------------------------------


def compose_run(
    name: str | Path | None, settings: Sequence[str] = (), layout: Layout = Layout()
) -> Composed:
    """A run file, its sections filled in, and `name=value` settings laid over them."""
    run = compose(name, "run", layout) if name is not None else Composed({}, {})
    values, origins = dict(run.values), dict(run.origins)
    pairs = [_split(setting) for setting in settings]
    _refuse_repeated(pairs, layout)
    for dotted, value in pairs:
        if "." not in dotted:
            values[dotted] = value
            origins = {k: v for k, v in origins.items() if k.split(".")[0] != dotted}
            origins[dotted] = "command line"
    for section in layout.sections:
        if values.get(section) is not None:
            filled = _section(section, values[section], origins.get(section, str(name)), layout)
            values[section] = filled.values
            origins.pop(section, None)
            origins.update({f"{section}.{leaf}": source for leaf, source in filled.origins.items()})
    layer = _layer(pairs)
    origins.update(dict.fromkeys(leaves(layer), "command line"))
    return _composed(overlay(values, layer, layout), origins)


def _section(section: str, given: Any, origin: str, layout: Layout) -> Composed:
    """A section of a run with everything that it names or inherits."""
    inner = Layout(alternatives={section: layout.alternatives.get(section, {})})
    if isinstance(given, str):
        return compose(given, section, inner)
    if isinstance(given, Mapping):
        return _inherit(given, section, origin, (), inner)
    raise SettingError(f"{section}: expected settings or the name of a file: {given!r}")


def _refuse_repeated(pairs: Sequence[tuple[str, Any]], layout: Layout) -> None:
    """Of two settings that say the same thing, one would be lost."""
    names = [name for dotted, value in pairs for name in _claims(dotted, value, layout)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise SettingError(
            f"{twice}: given twice; give it once, and put quotes around a value with braces, which "
            "a shell would make two settings of"
        )
    given = [dotted for dotted, _ in pairs]
    for dotted, value in pairs:
        inner = next((name for name in given if name.startswith(f"{dotted}.")), None)
        if inner and not isinstance(value, str | Mapping):
            raise SettingError(f"{inner}: {dotted} is given as a whole too; give one of them")


def _claims(dotted: str, value: Any, layout: Layout) -> Iterator[str]:
    """The names that a setting decides; a word stands for one of its alternatives.

    A section that is given as a whole decides none, since dotted settings are laid over it.
    """
    if isinstance(value, Mapping) and "." in dotted:
        for name, inner in value.items():
            yield from _claims(f"{dotted}.{name}", inner, layout)
        return
    yield dotted
    if isinstance(value, str):
        words = layout.meanings.get(dotted, KIND)
        yield from (f"{dotted}.{name}" for name in words)


def _layer(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """All dotted settings as one layer, so that their order does not matter."""
    layer: dict[str, Any] = {}
    for dotted, value in sorted(pairs, key=lambda pair: pair[0].count(".")):
        if "." in dotted:
            for part in reversed(dotted.split(".")):
                value = {part: value}
            layer = merge(layer, value)
    return layer


def _split(setting: str) -> tuple[str, Any]:
    name, equals, text = setting.partition("=")
    if not equals or not name:
        raise SettingError(f"{setting!r}: expected name=value, as in train.steps=100")
    value = read_value(name, text)
    commented = isinstance(value, str) and " #" in text and text[0] not in "\"'"
    return name, text if commented else value  # a path such as "my #1 run" is no comment
