"""The numbers of a quickstart, for programs: `summary.json`."""

from __future__ import annotations

from typing import Any

# name of a model in the summary -> the stage that made it
MODELS = {"base": "pretrain", "sft": "sft", "rl": "rl", "control": "control"}


def summarize(stages: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Seconds and peak_bytes of each stage, and the results of their models."""
    evaluated = stages["evaluate"]
    models = {name: evaluated[name] for name in MODELS}
    return {
        "seconds": {name: stage["seconds"] for name, stage in stages.items()},
        "peak_bytes": {name: stage["peak_bytes"] for name, stage in stages.items()},
        "bits_per_byte": {"before": evaluated["before"], "after": models["base"]["bits_per_byte"]},
        "exact_match": {name: model["exact_match"] for name, model in models.items()},
        "gains": evaluated["gains"],
        "reward": {
            "first": stages["rl"]["first"],
            "last": stages["rl"]["last"],
            "control_first": stages["control"]["first"],
            "control_last": stages["control"]["last"],
        },
        "packs": {
            name: {key: pack[key] for key in ("bytes", "bits_per_byte")}
            for name, pack in stages["pack"]["packs"].items()
        },
    }
