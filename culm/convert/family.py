"""Families of models in other libraries: their settings and names of tensors, in both directions.

A model belongs to a family if writing it and reading it back gives the same model; no setting is
checked separately.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from culm.config import SettingError, parse
from culm.convert.rules import TensorRule
from culm.model.transformer import TransformerConfig

_ABSENT = object()
SCORE = TensorRule(("head",), ("score",))  # a scalar head, in every family that has a classifier


class Fields:
    """Settings of another library, taken one by one; those left at the end are not understood."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.left = dict(given)

    def take(self, name: str, default: Any = _ABSENT) -> Any:
        """The value of a setting.

        Raises:
            KeyError: it is missing and has no default.
        """
        value = self.left.pop(name, default)
        if value is _ABSENT:
            raise KeyError(name)
        return value

    def only(self, name: str, *allowed: Any) -> None:
        """Take a setting that may be missing, or has one of these values.

        Raises:
            SettingError: it has another value.
        """
        value = self.left.pop(name, allowed[0])
        if value not in allowed:
            known = " or ".join(map(repr, allowed))
            raise SettingError(f"{name}: {value!r} is not read here, only {known}")

    def drop(self, *names: str) -> None:
        """Ignore settings that have no meaning here."""
        for name in names:
            self.left.pop(name, None)

    def end(self) -> None:
        """SettingError if a setting is left that is switched on."""
        for name, value in self.left.items():
            if value:  # None, false, 0 and empty mean off
                raise SettingError(
                    f"{name}: {value!r} is not known here and may change the model; remove it "
                    "from the file if the model does not need it"
                )


@dataclass(frozen=True)
class Family:
    """name: of the family in its settings. architecture: the class that computes it. classifier:
    the class that computes a score of a text with a scalar head; empty if there is none.

    read: their settings -> values of a TransformerConfig. write: a resolved config -> theirs;
    SettingError if it has parts that the family does not have.
    rules: the names of the tensors of a resolved config. root: prefix of most of them.
    mtp_layers: its files may contain layers after the last one, for multi-token prediction, which
        are skipped.
    own_head: its files contain the head even if it is tied to the embedding.
    defaults: what the other library takes for settings that a file lacks, where that differs from
        what `read` takes.
    """

    name: str
    read: Callable[[Fields], dict[str, Any]]
    write: Callable[[TransformerConfig], dict[str, Any]]
    rules: Callable[[TransformerConfig], list[TensorRule]]
    architecture: str = ""
    classifier: str = ""
    root: str = "model."
    mtp_layers: bool = False
    own_head: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def tensor_rules(self, config: TransformerConfig) -> list[TensorRule]:
        """The names of the tensors of a resolved config, whichever head it has."""
        found = self.rules(config)
        if config.head != "scalar":
            return found
        return [*(rule for rule in found if rule.ours != ("head",)), SCORE]

    def untied(self, config: TransformerConfig) -> TransformerConfig:
        """The settings as a file of the family has them."""
        return config.model_copy(update={"tied": False}) if self.own_head else config

    def config(self, given: Mapping[str, Any], source: str) -> TransformerConfig:
        """Our settings for theirs.

        Raises:
            SettingError: a setting is missing, or not understood.
        """
        fields = Fields({**self.defaults, **given})
        try:
            values = self.read(fields)
            fields.end()
        except KeyError as error:
            raise SettingError(f"{source}: the setting {error.args[0]} is missing") from None
        except (TypeError, ValueError) as error:
            raise SettingError(f"{source}: {error}") from None
        return parse(TransformerConfig, values, source).shortened()


class NoFamilyError(SettingError):
    """A model has parts that no family has."""


def family_of(config: TransformerConfig, families: Sequence[Family], target: str) -> Family:
    """The first family that supports this model.

    Raises:
        NoFamilyError: none does; the message names a setting that the nearest one lacks.
    """
    if config.head == "scalar":
        families = [family for family in families if family.classifier]
        if not families:
            raise NoFamilyError(
                f"model.head: {target} files hold language models, and this one has a scalar head; "
                "keep its Culm folder"
            )
        config = language_model(config)
    nearest: tuple[int, str] | None = None
    for family in families:
        differs = _misfit(family, config, target)
        if differs is None:
            return family
        if nearest is None or differs[0] < nearest[0]:
            nearest = differs
    assert nearest is not None
    raise NoFamilyError(nearest[1])


def language_model(config: TransformerConfig) -> TransformerConfig:
    """The settings with logits in place of a scalar head: what the settings of families are of."""
    return config.model_copy(update={"head": "vocabulary", "scores": 1, "tied": False})


def fits(family: Family, config: TransformerConfig) -> bool:
    """Whether a family supports this model."""
    return _misfit(family, config, family.name) is None


def _misfit(family: Family, config: TransformerConfig, target: str) -> tuple[int, str] | None:
    """How many settings the family lacks, and a sentence about the first; None if none."""
    wanted = _leaves(family.untied(config))
    try:
        given = family.write(family.untied(config).resolved())
        found = _leaves(family.config(given, family.name))
    except SettingError as error:
        return len(wanted), str(error)
    differing = [path for path in wanted | found if wanted.get(path) != found.get(path)]
    if not differing:
        return None
    lacking = f"{_shown(differing[0], config)}: no {target} family has this with the rest"
    return len(differing), f"{lacking}; the nearest is {family.name}"


def _leaves(config: TransformerConfig) -> dict[str, Any]:
    """Every setting that changes what the model computes, by its path."""
    values = config.resolved().model_dump(mode="json")
    for part in ("attention", "mlp"):
        given = values[part]
        values[part] = [dict(given[i % len(given)]) for i in range(config.layers)]
    values["residual"].pop("dropout")
    for name in ("init", "mtp"):  # of training, or outside the model
        values.pop(name)
    for mlp in values["mlp"]:
        for name in (
            "balance_loss",
            "sequence_balance_loss",
            "z_loss",
            "bias_rate",
            "capacity",
        ):  # of training alone
            mlp.pop(name, None)
    return dict(_paths(values, "model"))


def _paths(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _paths(inner, f"{path}.{name}")
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        for index, inner in enumerate(value):
            yield from _paths(inner, f"{path}[{index}]")
    else:
        yield path, value


def _shown(path: str, config: TransformerConfig) -> str:
    """A path, without the number of the layer if all layers are equal."""
    one = len(config.attention) == 1 if "attention" in path else len(config.mlp) == 1
    return re.sub(r"\[\d+\]", "", path) if one else path
