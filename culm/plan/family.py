"""A model in other sizes: one shape, other widths."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from culm.config import SettingError, parse
from culm.model.transformer import TransformerConfig
from culm.plan.model import ModelCost, cost_of

HEADS = ("heads", "key_heads")  # of a size that the parts keep, so that they grow with the width
SHARED_HEADS = "kv_heads"  # which divide the heads
INNER = ("hidden", "rank", "query_rank")
MULTIPLE = 8  # of which inner sizes are
LEAST_WIDTH = 64  # of the smallest, and a divisor of what is wider than WIDE
WIDE = 256
TRIED = 16  # widths after which a part that allows none is said
GROWTH = 1.15  # at least, of the width from one size to the next


class Family:
    """The sizes of a model and what each costs in rows of `context` tokens.

    Raises:
        SettingError: the model has parts of several widths.
    """

    def __init__(self, model: TransformerConfig, context: int) -> None:
        if model.kind != "transformer":
            raise SettingError(
                f"model.kind: a {model.kind} model has parts of several widths, and no rule says "
                "how they grow together; give the sizes themselves, without a budget"
            )
        self.model, self.context = model, context
        self._costs: dict[int, ModelCost] = {}

    def sizes(self) -> Iterator[TransformerConfig]:
        """Smallest first, without end."""
        return sizes_of(self.model)

    def cost(self, size: TransformerConfig) -> ModelCost:
        """Of one of the sizes; each is counted once."""
        if size.width not in self._costs:
            self._costs[size.width] = cost_of(size, self.context)
        return self._costs[size.width]

    def parameters(self, size: TransformerConfig) -> int:
        """Those that a token is multiplied with: N of the scaling law."""
        return self.cost(size).active


def sizes_of(model: TransformerConfig) -> Iterator[TransformerConfig]:
    """The model in all sizes, smallest first, without end.

    Layers, heads and inner sizes grow in proportion to the width; the size of a head, experts,
    context and vocabulary stay. A width is left out where a part does not allow it.

    Raises:
        SettingError: a part allows none of the next TRIED widths.
    """
    counts = [
        part[name]
        for part in model.model_dump()["attention"]
        for name in HEADS
        if part.get(name) is not None
    ]
    unit = model.width // math.gcd(model.width, *counts)
    width, refused = unit * -(-LEAST_WIDTH // unit), 0
    while True:
        try:
            yield resized(model, width)
            refused = 0
        except SettingError:
            refused += 1
            if refused == TRIED:
                raise
        least = GROWTH * width
        multiple = unit if least <= WIDE else math.lcm(unit, LEAST_WIDTH)
        width = multiple * math.ceil(least / multiple)


def resized(model: TransformerConfig, width: int) -> TransformerConfig:
    """The model in another width.

    Raises:
        SettingError: a part does not allow it.
    """
    times = width / model.width
    values = model.model_dump(mode="json")
    values |= {"width": width, "layers": max(1, round(model.layers * times))}
    for kind in ("attention", "mlp"):
        values[kind] = [_part(part, times) for part in values[kind]]
    return parse(TransformerConfig, values)


def _part(part: Mapping[str, Any], times: float) -> dict[str, Any]:
    found = dict(part)
    for name in HEADS:
        if part.get(name) is not None:
            found[name] = max(1, round(part[name] * times))
    for name in INNER:
        if part.get(name) is not None:
            found[name] = MULTIPLE * max(1, round(part[name] * times / MULTIPLE))
    if part.get(SHARED_HEADS) is not None:
        wanted = max(1, round(part[SHARED_HEADS] * times))
        found[SHARED_HEADS] = next(n for n in range(wanted, 0, -1) if found["heads"] % n == 0)
    return found
