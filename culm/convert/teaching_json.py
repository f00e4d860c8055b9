"""The JSON settings of teaching code (`emb_dim`, `n_heads`, ...), as a model settings file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from culm.atomic import atomic
from culm.config import SettingError, parse
from culm.files import read_json
from culm.model.transformer import TransformerConfig

NEEDED = ("vocab_size", "emb_dim", "n_heads", "n_layers", "context_length")
# Allowed values of settings for which our model has no choice, the usual one first.
ONLY: Mapping[str, tuple[Any, ...]] = {
    "drop_rate": (0, None),
    "norm_type": ("rmsnorm", "rms", "rms_norm"),
    "ff_type": ("swiglu", "silu", "gated"),
}
OPTIONAL = ("qkv_bias", "tie_embeddings", "n_kv_groups", "n_kv_heads", "hidden_dim")


def read(path: str | Path) -> TransformerConfig:
    """The model that such a file describes.

    `n_kv_groups` and `n_kv_heads` both count the key and value heads.

    Raises:
        SettingError: a key is missing or unknown, or asks for a part that this model does not have.
    """
    path = Path(path)
    given = read_json(path)
    known = (*NEEDED, *ONLY, *OPTIONAL)
    for name in given:
        if name not in known:
            raise SettingError(f"{path}: {name}: no such setting; known: {', '.join(known)}")
    for name in NEEDED:
        if name not in given:
            raise SettingError(f"{path}: {name}: this setting is needed")
    for name, allowed in ONLY.items():
        value = given.get(name, allowed[0])
        if (value.lower() if isinstance(value, str) else value) not in allowed:
            raise SettingError(f"{path}: {name}: {value!r} is not supported, only {allowed[0]!r}")
    kv_heads = {given[n] for n in ("n_kv_groups", "n_kv_heads") if given.get(n) is not None}
    if len(kv_heads) > 1:
        raise SettingError(f"{path}: n_kv_groups: it differs from n_kv_heads")
    values = {
        "vocabulary": given["vocab_size"],
        "width": given["emb_dim"],
        "layers": given["n_layers"],
        "context": given["context_length"],
        "attention": {
            "kind": "gqa",
            "heads": given["n_heads"],
            "kv_heads": kv_heads.pop() if kv_heads else None,
            "bias": given.get("qkv_bias", False),
        },
        "mlp": {"kind": "swiglu", "hidden": given.get("hidden_dim")},
        "tied": given.get("tie_embeddings", True),
    }
    return parse(TransformerConfig, values, str(path))


def write(config: TransformerConfig, path: str | Path) -> None:
    """Write model settings that a run file can name: `model: PATH`."""
    values = config.model_dump(mode="json", exclude_unset=True)
    for part in ("attention", "mlp"):  # one for all layers is written without a list
        values[part] = values[part][0] if len(values[part]) == 1 else values[part]
    with atomic(Path(path)) as fresh:
        fresh.write_text(yaml.safe_dump(_given(values), sort_keys=False), encoding="utf-8")


def _given(values: Any) -> Any:
    """Without settings that are None, except for rope, where null means none."""
    if isinstance(values, dict):
        return {n: _given(v) for n, v in values.items() if v is not None or n == "rope"}
    return values
