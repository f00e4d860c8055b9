"""A training step on the meta device: every operation runs, and no number is computed.

So FLOPs and memory are counted of the very modules that will run, whatever their attention,
objective, adapter or optimizer: a new part needs no formula here.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx.experimental import _config as settings
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from culm.batch import Batch
from culm.model import flash_cpu, grouped
from culm.model.attention.part import AttentionModule
from culm.model.backend import Choice, choose_backend
from culm.model.score_rule import Backend
from culm.optim.groups import trainable

Columns = Mapping[str, Literal["row", "token"]]
aten = torch.ops.aten
ALONE = 2  # uses of a storage of one tensor, of which one is by the object that is asked
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

    A storage counts once, however many views it has, from its first use until it is let go. What an
    operation takes while it runs counts too, where it is known (`temporary_bytes`).
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen = {id(tensor.untyped_storage()): 0 for tensor in known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = args[0].add_(args[1]) if _adds_up(func, args) else func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        self.peak = max(self.peak, self.now + temporary_bytes(func, args))
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


def temporary_bytes(func: OpOverload, args: Sequence[Any]) -> int:
    """Bytes of tensors that an operation of PyTorch takes and frees again, on any device."""
    if func is aten.logsumexp.default:
        return args[0].nbytes
    if func is aten.index.Tensor:  # indices are converted to int64
        known = [index for index in args[1] if index is not None]
        return sum(8 * index.numel() for index in known if index.dtype == torch.int32)
    return 0


def _adds_up(func: OpOverload, args: Sequence[Any]) -> bool:
    """Whether this is autograd's sum of two gradients of one tensor, which takes the memory of the
    first one where nobody else has it; under a dispatch mode it does not.
    """
    if func is not aten.add.Tensor or torch.is_grad_enabled():
        return False
    total, more = args[0], args[1]
    if torch._C._current_autograd_node() is None or not isinstance(more, Tensor):
        return False
    alone = torch._C._storage_Use_Count(total.untyped_storage()._cdata) == ALONE
    return alone and total.shape == more.shape and total.is_contiguous()


def counting_matmuls() -> FlopCounterMode:
    """Counts the matmuls within it; `get_total_flops()` gives their FLOPs."""
    known = {aten.addmm_: _added_matmul, **grouped.FLOPS, **flash_cpu.FLOPS}
    return FlopCounterMode(display=False, custom_mapping=known)


def _added_matmul(total, a, b, **_: object) -> int:
    """FLOPs of total += a b, from shapes; torch's own table lacks the in-place form."""
    return 2 * a[0] * a[1] * b[1]


def set_backend(objective: nn.Module, wanted: Choice, gpu: bool, dtype: torch.dtype) -> None:
    """Give each attention the backend that it will have on this CPU, or by default on a GPU.

    Raises:
        SettingError: the wanted backend cannot run on this CPU.
    """
    device = torch.device("cuda" if gpu else "cpu")
    backend: Backend = "sdpa" if gpu else choose_backend(device, wanted, dtype, training=True)
    for module in objective.modules():
        if isinstance(module, AttentionModule):
            module.backend = backend if module.serves(backend, device) else "blocks"


def training_flops(objective: nn.Module, batch: Batch) -> int:
    """Of the matmuls in a forward and a backward; objective and batch on the meta device.

    Counting keeps what activation checkpointing would free, so it has a pass of its own.
    """
    matmuls = counting_matmuls()
    with settings.patch(meta_nonzero_assume_all_nonzero=True), matmuls:  # type: ignore[attr-defined]
        objective(batch).mean(ONES).backward()
    return matmuls.get_total_flops()


def dry_run(objective: nn.Module, batch: Batch) -> Cost:
    """Forward and backward of one micro-batch; objective and batch on the meta device.

    Numbers do not exist there, so every target is taken to be learned: what masks save is not seen.
    """
    bytes = activation_bytes(objective, batch)
    return Cost(training_flops(objective, batch), bytes)


def activation_bytes(objective: nn.Module, batch: Batch, accumulates: bool = True) -> int:
    """The peak of a dry run, without weights and gradients.

    accumulates: the gradients of an earlier micro-batch are there already; else they come during
    the backward, while activations go.
    """
    learned = [parameter for _, parameter in trainable(objective)]
    for parameter in learned:
        parameter.grad = torch.zeros_like(parameter) if accumulates else None
    gradients = [p.grad for p in learned if p.grad is not None]
    memory = TensorMemory([*objective.parameters(), *objective.buffers(), *gradients])
    with settings.patch(meta_nonzero_assume_all_nonzero=True), memory:  # type: ignore[attr-defined]
        objective(batch).mean(ONES).backward()
    return max(0, memory.peak - (0 if accumulates else sum(p.nbytes for p in learned)))


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
