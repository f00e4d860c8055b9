"""A training step on the meta device: every operation runs, and no number is computed.

So FLOPs and memory are counted of the very modules that will run, whatever their attention,
objective, adapter or optimizer: a new part needs no formula here.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as settings
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from culm.batch import Batch
from culm.model import grouped
from culm.model.attention.part import AttentionModule
from culm.optim.groups import trainable

Columns = Mapping[str, Literal["row", "token"]]
ONES: Mapping[str, float] = defaultdict(lambda: 1.0)  # counts of any name


@dataclass(frozen=True)
class Cost:
    """flops: of the matmuls, two for each multiply-add.

    bytes: peak memory, without weights and gradients.
    """

    flops: int
    bytes: int


class TensorMemory(TorchDispatchMode):
    """Adds up the tensors that live while it is on; `known` ones were there before.

    A storage counts once, however many views it has, from its first use until it is let go.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen = {id(tensor.untyped_storage()): 0 for tensor in known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self._seen:
            return
        self._seen[key] = storage.nbytes()
        weakref.finalize(storage, self._let_go, key)
        self.now += self._seen[key]
        self.peak = max(self.peak, self.now)

    def _let_go(self, key: int) -> None:
        self.now -= self._seen.pop(key)


def counting_matmuls() -> FlopCounterMode:
    """Counts the matmuls within it; `get_total_flops()` gives their FLOPs."""
    known = {torch.ops.aten.addmm_: _added_matmul, **grouped.FLOPS}
    return FlopCounterMode(display=False, custom_mapping=known)


def _added_matmul(total, a, b, **_: object) -> int:
    """FLOPs of total += a b, from shapes; torch's own table lacks the in-place form."""
    return 2 * a[0] * a[1] * b[1]


def as_on_gpu(objective: nn.Module) -> None:
    """Give each attention the backend that is the default on a GPU, where it serves."""
    gpu = torch.device("cuda")
    for module in objective.modules():
        if isinstance(module, AttentionModule) and module.serves("sdpa", gpu):
            module.backend = "sdpa"


def training_flops(objective: nn.Module, batch: Batch) -> int:
    """Of forward and backward; objective and batch on the meta device."""
    matmuls = counting_matmuls()
    with settings.patch(meta_nonzero_assume_all_nonzero=True), matmuls:  # type: ignore[attr-defined]
        objective(batch).mean(ONES).backward()
    return matmuls.get_total_flops()


def dry_run(objective: nn.Module, batch: Batch) -> Cost:
    """Forward and backward of one micro-batch; objective and batch on the meta device.

    Numbers do not exist there, so every target is taken to be learned: what masks save is not seen.
    """
    for _, parameter in trainable(objective):
        parameter.grad = torch.zeros_like(parameter)
    gradients = [p.grad for p in objective.parameters() if p.grad is not None]
    memory = TensorMemory([*objective.parameters(), *objective.buffers(), *gradients])
    with settings.patch(meta_nonzero_assume_all_nonzero=True), memory:  # type: ignore[attr-defined]
        objective(batch).mean(ONES).backward()
    # In a pass of its own: counting keeps what activation checkpointing would free.
    return Cost(training_flops(objective, batch), memory.peak)


def meta_batch(
    rows: int,
    context: int,
    *,
    packed: bool = True,
    columns: Columns | None = None,
) -> Batch:
    """A batch of the given shape on the meta device.

    packed: rows hold several documents, so that attention is masked. columns: what the objective
    needs in `Batch.extra` (`ObjectiveConfig.columns`).
    """

    def empty(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    shapes = {"row": (rows,), "token": (rows, context)}
    extra = {n: empty(*shapes[per], dtype=torch.float32) for n, per in (columns or {}).items()}
    return Batch(
        tokens=empty(rows, context),
        targets=empty(rows, context),
        positions=empty(rows, context),
        documents=empty(rows, context, dtype=torch.int32) if packed else None,
        lengths=empty(rows),
        extra=extra,
    )
