"""`adapter_config.json` of PEFT, written and read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from culm.adapt.lora import LoRA
from culm.config import SettingError, parse
from culm.files import read_json

NAME = "adapter_config.json"

# Settings that the tensors imply, that are for training, or that only name things.
_NEUTRAL = """
peft_type task_type auto_mapping peft_version base_model_name_or_path revision inference_mode
target_modules exclude_modules modules_to_save layers_to_transform layers_pattern rank_pattern
megatron_core qalora_group_size ensure_weight_tying alpha_pattern fan_in_fan_out
"""
NEUTRAL = frozenset(_NEUTRAL.split())
# Allowed values of others. Other initial values (pissa, olora, loftq) also change the base.
ONLY: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}


def base_of(folder: Path) -> tuple[str, str | None]:
    """The path or hub id of an adapter's base model, and its revision on the hub if it has one.

    Raises:
        SettingError: the folder does not name it.
    """
    path = folder / NAME
    given = read_json(path)
    base, revision = given.get("base_model_name_or_path"), given.get("revision")
    if not isinstance(base, str) or not base:
        raise SettingError(
            f"{path}: base_model_name_or_path names no model; give the adapter with its base: "
            "culm.load(BASE, adapter=FOLDER)"
        )
    if not isinstance(revision, str | None):
        raise SettingError(
            f"{path}: revision: {revision!r} is not the name of a version; remove it"
        )
    return base, revision


@dataclass(frozen=True)
class PeftSettings:
    """ranks_differ: layers have different ranks, which the tensors show. keeps_tied: a tied head
    follows a trained embedding. alphas: alpha of the layers whose name a pattern matches. targets:
    the ends of the names of adapted layers, where the file lists them."""

    lora: LoRA
    ranks_differ: bool
    keeps_tied: bool
    alphas: Mapping[str, float]
    targets: tuple[str, ...] = ()

    def of(self, layer: str) -> PeftSettings:
        """The settings of one layer, by its name there. The first pattern that matches counts."""
        for pattern, alpha in self.alphas.items():
            if re.fullmatch(rf"(.*\.)?({pattern})", layer):
                return replace(self, lora=self.lora.model_copy(update={"alpha": alpha}))
        return self


def check_targets(settings: PeftSettings, layers: Iterable[str], path: Path) -> None:
    """Check that the settings in `path` name the layers that have tensors, by their names there.

    Raises:
        SettingError: PEFT would ignore the tensors of one.
    """
    for layer in layers if settings.targets else ():
        if not any(f".{layer}".endswith(f".{name}") for name in settings.targets):
            raise SettingError(
                f"{path}: target_modules: it does not name {layer}, which the weights adapt; add "
                "its name, or remove its tensors"
            )


def read_settings(folder: Path) -> PeftSettings:
    """The content of the file; an unknown setting of PEFT is refused by name.

    Raises:
        SettingError: naming the file and the setting.
    """
    path = folder / NAME
    given = read_json(path)
    if (kind := given.get("peft_type")) != "LORA":
        raise SettingError(f"{path}: peft_type: {kind!r} is not read here, only 'LORA'")
    left = {name: value for name, value in given.items() if name not in NEUTRAL}
    values = {
        "rank": left.pop("r", 8),
        "alpha": left.pop("lora_alpha", 8),
        "dropout": left.pop("lora_dropout", 0.0),
        "rslora": left.pop("use_rslora", False),
        "dora": left.pop("use_dora", False),
    }
    for name, allowed in ONLY.items():
        if (value := left.pop(name, allowed[0])) not in allowed:
            raise SettingError(f"{path}: {name}: {value!r} is not read here, only {allowed[0]!r}")
    for name, value in left.items():
        if value:  # None, false, 0 and empty mean off
            raise SettingError(f"{path}: {name}: {value!r} is not known here and may change it")
    differ, tied = (bool(given.get(name)) for name in ("rank_pattern", "ensure_weight_tying"))
    listed = given.get("target_modules")
    targets = tuple(map(str, listed)) if isinstance(listed, list) else ()  # else a pattern
    alphas = _alphas(given, path)
    return PeftSettings(parse(LoRA, values, str(path)), differ, tied, alphas, targets)


def _alphas(given: Mapping[str, Any], path: Path) -> dict[str, float]:
    """`alpha_pattern`, checked."""
    alphas = given.get("alpha_pattern") or {}
    try:
        for pattern in alphas:
            re.compile(pattern)
        return {pattern: parse(LoRA, {"alpha": alpha}).alpha for pattern, alpha in alphas.items()}
    except (AttributeError, TypeError, ValueError, re.error) as error:
        raise SettingError(f"{path}: alpha_pattern: {alphas!r} is not read here: {error}") from None


def written(
    settings: LoRA, targets: Iterable[str], whole: Iterable[str], base: str | None
) -> dict[str, Any]:
    """The content of the file. targets: adapted layers, whole: fully trained modules, both by the
    last parts of their names."""
    alpha = settings.alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": settings.rank,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "lora_dropout": settings.dropout,
        "use_rslora": settings.rslora,
        "use_dora": settings.dora,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "target_modules": sorted(targets),
        "modules_to_save": sorted(whole) or None,
    }
