"""The parts of a model that the ranks of a pipeline have: a group of layers each, and its ends.

    first rank: embedding, positions, layers 0 1 2      last rank: layers 3 4 5, norm, MTP, head

Where the embedding is read at the end too, as a tied head or by multi-token prediction, both ranks
have it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from culm.model.elsewhere import Elsewhere
from culm.model.mlp.moe import Router
from culm.model.transformer import Transformer
from culm.parallel.axis import Axis
from culm.parallel.settings import ParallelConfig


def layers_of(stages: int, layers: int) -> list[range]:
    """The layers of each stage; where they do not divide, the first stages have one more."""
    least, more = divmod(layers, stages)
    starts = [stage * least + min(stage, more) for stage in range(stages + 1)]
    return [range(a, b) for a, b in pairwise(starts)]


@dataclass
class Piece:
    """path: of the module in its model. owners: ranks of the pipeline that have it. hollow: what
    it is, on the meta device; on ranks that do not have it.
    """

    path: str
    owners: tuple[int, ...]
    hollow: nn.Module | None = None


class Pieces:
    """All parts of one model, which is still whole; `drop` leaves the rank its own."""

    def __init__(self, model: Transformer, axis: Axis, settings: ParallelConfig) -> None:
        self.model, self.axis = model, axis
        self.owner = settings.rank_of_stage
        self.stages = layers_of(settings.stages, model.config.layers)
        self.pieces = list(self._pieces(settings))
        for piece in self.pieces:
            if axis.rank not in piece.owners:
                piece.hollow = copy.deepcopy(model.get_submodule(piece.path)).to("meta")

    def _pieces(self, settings: ParallelConfig) -> Iterator[Piece]:
        model, config = self.model, self.model.config
        first, last = (settings.rank_of_stage(n) for n in (0, settings.stages - 1))
        both = config.tied or config.mtp is not None
        yield Piece("embed", (first, last) if both and first != last else (first,))
        if model.positions is not None:
            yield Piece("positions", (first,))
        for number, stage in enumerate(self.stages):
            for layer in stage:
                yield Piece(f"blocks.{layer}", (settings.rank_of_stage(number),))
        yield Piece("norm", (last,))
        for number in range(len(model.mtp)):
            yield Piece(f"mtp.{number}", (last,))
        yield Piece("head", (last,))

    def stage_of(self, layer: int) -> int:
        """The stage that computes a layer."""
        return next(number for number, stage in enumerate(self.stages) if layer in stage)

    def drop(self) -> None:
        """Leave this rank its parts."""
        for piece in self.pieces:
            if piece.hollow is not None:
                self._put(piece, _trace(piece.hollow))

    @property
    def twice(self) -> nn.Parameter | None:
        """The embedding, if this rank has it together with another one."""
        piece = self.pieces[0]
        held = len(piece.owners) == 2 and self.axis.rank in piece.owners
        return self.model.get_parameter("embed.weight") if held else None

    @contextmanager
    def whole(self) -> Iterator[None]:
        """All parts on every rank, for inference; every rank takes part."""
        for piece in self.pieces:
            if piece.path == "head" and self.model.config.tied:
                self._tie(piece)
                continue
            module = self.model.get_submodule(piece.path)
            if piece.hollow is not None:
                module = copy.deepcopy(piece.hollow).to_empty(device=self.model.device)
                module.train(self.model.training)
            for tensor in (*module.parameters(), *module.buffers()):
                self.axis.broadcast(tensor.data, piece.owners[0])
            self._put(piece, module)
        try:
            yield
        finally:
            self.drop()

    def _tie(self, piece: Piece) -> None:
        if piece.hollow is not None:
            self._put(piece, copy.deepcopy(piece.hollow))
            self.model.tie()

    def _put(self, piece: Piece, module: nn.Module) -> None:
        parent, _, name = piece.path.rpartition(".")
        self.model.get_submodule(parent).register_module(name, module)


def _trace(module: nn.Module) -> Elsewhere:
    learned = tuple(name for name, p in module.named_parameters() if p.requires_grad)
    return Elsewhere(learned, sum(isinstance(part, Router) for part in module.modules()))
