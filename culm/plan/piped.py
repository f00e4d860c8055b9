"""What a rank of a pipeline holds and sends: the largest share of any, by formula."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from torch import nn

from culm.model.transformer import Transformer
from culm.parallel.axis import SimulatedAxis
from culm.parallel.mesh import Axes
from culm.parallel.parallelize import shards_of
from culm.parallel.pieces import Pieces
from culm.parallel.settings import ParallelConfig
from culm.parallel.states import States


class Piped:
    """An objective on the meta device, still whole, as the ranks of a pipeline will have it."""

    def __init__(self, objective: nn.Module, axes: Axes, settings: ParallelConfig) -> None:
        self.settings, axis = settings, SimulatedAxis(settings.pipeline)
        models = [part for part in objective.modules() if isinstance(part, Transformer)]
        shards = shards_of(axes, settings)
        self.states = [States(m, Pieces(m, axis, settings), shards) for m in models]
        self.objective = objective

    def held(self) -> set[nn.Parameter]:
        """Parameters of the rank that has most; to be asked once other axes have divided them."""
        ranks = range(self.settings.pipeline)
        return max(
            map(self._of_rank, ranks), key=lambda found: sum(p.nbytes for p in found), default=set()
        )

    def _of_rank(self, rank: int) -> set[nn.Parameter]:
        found, inside = set[nn.Parameter](), set[nn.Parameter]()
        for state in self.states:
            inside |= set(state.model.parameters())
            for piece in state.pieces.pieces:
                if rank in piece.owners:
                    found |= set(state.model.get_submodule(piece.path).parameters())
        return found | (set(self.objective.parameters()) - inside)

    def sent(self, rows: int, tokens: int, micro_batches: int) -> Counter[str]:
        """Bytes of states and their gradients that the busiest rank sends in a step, and of the
        embedding's gradient where two ranks have it.
        """
        ends = [self.settings.rank_of_stage(n) for n in (0, self.settings.stages - 1)]
        sent = dict.fromkeys(range(self.settings.pipeline), 0)
        for state in self.states:
            for stage in range(self.settings.stages - 1):
                here, there = (self.settings.rank_of_stage(n) for n in (stage, stage + 1))
                if here != there:
                    bytes = micro_batches * self._bytes(state, state.shapes(stage, rows, tokens))
                    sent[here] += bytes
                    sent[there] += bytes if state.learns else 0
            table = state.model.get_parameter("embed.weight")
            if len(state.pieces.pieces[0].owners) == 2 and table.requires_grad:
                for end in ends:
                    sent[end] += table.nbytes
        return Counter({"point-to-point": max(sent.values())})

    def at_once(self, micro_batches: int) -> float:
        """Micro-batches whose activations the first rank has at a time, each of its own layers: as
        the schedule orders them.
        """
        ranks, settings = self.settings.pipeline, self.settings
        if settings.pipeline_schedule == "gpipe":
            return float(micro_batches)
        more = 0.0
        if settings.pipeline_schedule == "interleaved":
            more = (ranks - 1) / settings.stages_per_rank
        return min(float(micro_batches), ranks + more)

    @staticmethod
    def _bytes(state: States, shapes: Iterable[tuple[int, ...]]) -> int:
        total = 0
        for shape in shapes:
            size = 1
            for length in shape:
                size *= length
            total += size
        return total * state.model.dtype.itemsize
