"""Placeholder for a part of a model that is on another rank of a pipeline."""

from __future__ import annotations

from torch import nn


class Elsewhere(nn.Module):
    """learned: names of those of its parameters that learn. routers: how many it has."""

    def __init__(self, learned: tuple[str, ...] = (), routers: int = 0) -> None:
        super().__init__()
        self.learned, self.routers = learned, routers
