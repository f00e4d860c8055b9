"""The models of a run with whole weights, on the rank that writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from culm.model.transformer import Transformer
from culm.parallel.ranks import Ranks
from culm.parallel.sharded import needs_others, state_of
from culm.run.initial import initial_model
from culm.run.objective import change_model
from culm.run.settings import RunConfig

Models = Mapping[str, Transformer]


def whole_models(
    config: RunConfig, folder: Path, models: Models, ranks: Ranks,
    build: Callable[[Transformer], Models],
) -> Models | None:  # fmt: skip
    """Models by name; None on the other ranks. Every rank calls it.

    Models that a rank cannot use alone are copied to the CPU. build: makes models of these names
    from the one with which the run began. Others are the given ones.
    """
    if not any(needs_others(model, ranks) for model in models.values()):
        return models if ranks.writer else None
    weights = {name: state_of(model, ranks) for name, model in models.items()}
    if not ranks.writer:
        return None
    start, _ = initial_model(config, folder)
    change_model(config, start)
    found = build(start)
    for name, model in found.items():
        model.load_state_dict(weights[name])
        model.dtype = models[name].dtype
    return found
