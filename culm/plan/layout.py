"""What one process of a layout holds and sends, from the first rank of it, without the others.

The objective is divided on the meta device as it will be, so tensor, context and expert parallelism
are counted of the very modules that will run. What FSDP2 and DDP hold and send is a formula; each
is tested against the bytes that real ranks send.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from culm.model.block import Block
from culm.optim.groups import trainable
from culm.parallel.axis import SimulatedAxis
from culm.parallel.mesh import Axes
from culm.parallel.parallelize import divide
from culm.parallel.settings import ParallelConfig
from culm.plan.piped import Piped


@dataclass(frozen=True)
class Layout:
    """settings: of the run. processes: all of them."""

    settings: ParallelConfig = ParallelConfig()  # noqa: RUF009 - frozen
    processes: int = 1

    @property
    def data(self) -> int:
        """Ranks with rows of their own."""
        return self.settings.data_ranks(self.processes) if self.processes > 1 else 1

    @property
    def shards(self) -> int:
        """Ranks over which FSDP2 shards a parameter."""
        if self.settings.data == "ddp":
            return 1
        return self.data * self.settings.context // self.settings.replicas

    @property
    def expert_shards(self) -> int:
        """Ranks over which FSDP2 shards an expert."""
        if self.settings.data == "ddp":
            return 1
        settings = self.settings
        return self.processes // (settings.pipeline * settings.expert * settings.replicas)

    @property
    def alike(self) -> int:
        """Ranks that compute each layer of a row together."""
        return self.settings.tensor * self.settings.context if self.processes > 1 else 1

    @property
    def copies(self) -> int:
        """Ranks that add up the gradients of a shard."""
        settings = self.settings
        return self.data * settings.context if settings.data == "ddp" else settings.replicas

    @property
    def expert_copies(self) -> int:
        """The same of an expert."""
        settings = self.settings
        if settings.data == "fsdp":
            return settings.replicas
        return self.processes // (settings.pipeline * settings.expert)

    @property
    def divides(self) -> bool:
        """Whether a process holds or computes less than the whole model."""
        settings = self.settings
        alone = settings.ranks_per_model == settings.expert == 1 and settings.data == "ddp"
        return self.processes > 1 and not alone

    def divide(self, objective: nn.Module) -> dict[str, SimulatedAxis]:
        """Leave the objective, on the meta device, what the first rank has of it."""
        axes = self.axes()
        divide(objective, Axes(**axes), self.settings)  # which does nothing where no axis divides
        return axes

    def axes(self) -> dict[str, SimulatedAxis]:
        """By name, without the other ranks."""
        settings = self.settings if self.processes > 1 else ParallelConfig()
        sizes = {
            "tensor": settings.tensor, "context": settings.context, "expert": settings.expert,
            "pipeline": settings.pipeline,
        }  # fmt: skip
        return {name: SimulatedAxis(size) for name, size in sizes.items()}

    def piped(self, objective: nn.Module) -> Piped | None:
        """The whole objective as ranks of a pipeline have it, if there are some."""
        if self.processes == 1 or self.settings.pipeline == 1:
            return None
        return Piped(objective, Axes(**self.axes()), self.settings)


class Held:
    """Bytes of the parameters of a divided objective on one process.

    weights, trained: their shards. gathered: what FSDP2 has whole at a time: all that is outside
    of blocks, and two blocks, of which the second is fetched early. largest: of these blocks.
    added_up: of what every tensor-parallel rank has, whose gradients they add up.
    """

    def __init__(
        self,
        objective: nn.Module,
        layout: Layout,
        axes: Mapping[str, SimulatedAxis],
        piped: Piped | None = None,
    ) -> None:
        every = set(objective.parameters()) if piped is None else piped.held()
        experts = axes["expert"].kept & every
        blocks = [set(m.parameters()) & every for m in objective.modules() if isinstance(m, Block)]
        inside = set[nn.Parameter]().union(*blocks)
        learned = {p for _, p in trainable(objective)} & every

        split = {p: layout.expert_shards if p in experts else layout.shards for p in every}

        def shards(parameters: Iterable[nn.Parameter]) -> int:
            return sum(-(-p.nbytes // split[p]) for p in parameters)

        def whole(parameters: Iterable[nn.Parameter]) -> int:
            return bytes_of(p for p in parameters if split[p] > 1)

        self.weights, self.trained = shards(every), shards(learned)
        self.rest, self.largest = bytes_of(every - inside), max(map(whole, blocks), default=0)
        self.gathered = whole(every - inside) + 2 * self.largest
        self.parts = [
            (layout.shards, layout.copies, inside - experts, learned - experts),
            (layout.expert_shards, layout.expert_copies, experts, learned & experts),
        ]
        self.added_up = bytes_of(learned - axes["tensor"].kept - experts)

    def sent(self, micro_batches: int) -> Counter[str]:
        """Bytes that FSDP2 or DDP lets a rank send in a step, by kind of exchange.

        Blocks are gathered for the forward and for the backward of each micro-batch, the rest once
        for both; gradients are exchanged once.
        """
        found, rest = Counter[str](), self.rest
        for shards, copies, blocks, learned in self.parts:
            away, gathers = (shards - 1) / shards, micro_batches * (2 * bytes_of(blocks) + rest)
            found["all-gather"] += int(gathers * away)
            found["reduce-scatter"] += int(bytes_of(learned) * away)
            found["all-reduce"] += int(2 * bytes_of(learned) / shards * (copies - 1) / copies)
            rest = 0
        return found


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Of all tensors, shared ones once."""
    return sum(tensor.nbytes for tensor in {id(t): t for t in tensors}.values())
