"""The memory of a training process, from steps that take all their buffers and compute nothing.

Tensors alone do not tell it: between them the C library keeps gaps that nothing fits in, and with
activation checkpointing these may be larger than the tensors. So the steps run with this process's
own allocator and autograd. Nobody writes to the buffers, so they cost no memory.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from culm.bytelatent.model import PatchModel
from culm.malloc import heap_end, keep_freed_memory, release_freed_memory
from culm.model.context import Context
from culm.model.logprobs import ROUND
from culm.model.transformer import Transformer
from culm.objective.objective import Objective
from culm.optim.groups import trainable
from culm.optim.optimizer import OptimizerConfig
from culm.optim.rule import Group, RuleOptimizer
from culm.plan.dry_run import ONES, temporary_bytes
from culm.plan.needs import Step
from culm.train.memory import resident_bytes

aten = torch.ops.aten
MATMULS = (aten.mm.default, aten.bmm.default, aten.addmm.default)
STEPS = 3  # of training
LATER = 1.1  # the heap of a long run, by that of these steps (docs/log.md)
MICRO_BATCHES = 2  # of a step at most; further ones find the gaps of the second
VARIETY = 4  # of the numbers of learned targets
LARGEST, SMALLEST = 1 << 24, 1 << 12  # gaps that are filled before


class Unfilled(TorchDispatchMode):
    """Gives each operation on a CPU its result as a buffer of the right size that nobody fills.

    How many elements are not zero is unknown: nearly all, other numbers in turn. So batches differ
    in their learned targets, as real ones do, and their buffers in size. A number that Python reads
    is 0, as the count of steps is at first: what an optimizer does in some steps only, it does.
    """

    def __init__(self) -> None:
        super().__init__()
        self._counted = 0

    def _nonzero(self, value: Tensor) -> Tensor:
        fewer = self._counted % VARIETY * min(ROUND, value.numel() // (2 * VARIETY))
        self._counted += 1
        return torch.empty(value.numel() - fewer, value.dim(), dtype=torch.int64)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = kwargs or {}
        schema = func._schema
        tensors = [leaf for leaf in tree_leaves((args, given)) if isinstance(leaf, Tensor)]
        if func.is_view or not (tensors or func.namespace == "aten"):
            return func(*args, **given)
        if func is aten.nonzero.default:
            return self._nonzero(args[0])
        if func is aten._local_scalar_dense.default:
            return torch.zeros((), dtype=args[0].dtype).tolist()
        if schema.is_mutable:
            return _written(schema, args, given)
        if not tensors and any(argument.name == "device" for argument in schema.arguments):
            given = {**given, "device": torch.device("meta")}
        scratch = torch.empty(_scratch(func, args, tensors), dtype=torch.uint8)
        shapes = func(*tree_map(_to_meta, args), **tree_map(_to_meta, given))
        found = tree_map(_to_buffer, shapes)
        del scratch
        return found


def _scratch(func: Any, args: tuple[Any, ...], tensors: list[Tensor]) -> int:
    """Bytes that a kernel takes while it runs."""
    if func in MATMULS and tensors[-1].dtype == torch.bfloat16:  # a part in another order
        return tensors[-1].nbytes // 2
    return temporary_bytes(func, args)


def _written(schema: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
    """The arguments that an operation writes to and returns."""
    values = {argument.name: value for argument, value in zip(schema.arguments, args, strict=False)}
    values |= given
    written = [
        values[argument.name]
        for argument in schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    count = len(schema.returns)
    return tuple(written[:count]) if count > 1 else written[0] if count else None


def _to_meta(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("meta")
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="meta")


def _to_buffer(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype)


def process_bytes(
    objective: Objective, optimizer: OptimizerConfig, step: Step, evaluated: int
) -> int | None:
    """Memory of a process like this one that trains the objective; None if it is unknown.

    Objective on the meta device. evaluated: rows that are scored at once.

    The memory that CPU kernels allocate for themselves is counted only if some ran before.
    """
    if heap_end() is None:
        return None
    keep_freed_memory()
    gc.collect()
    release_freed_memory()
    with _gaps_filled():
        before, resident = heap_end(), resident_bytes()
        with Unfilled():
            _train(objective, optimizer, step, evaluated)
        after = heap_end()
    gc.collect()
    release_freed_memory()
    if before is None or after is None or resident is None:
        return None
    return resident + round(LATER * (after[1] - before[0]))


def _train(objective: Objective, optimizer: OptimizerConfig, step: Step, evaluated: int) -> None:
    hollow = copy.deepcopy(objective)
    hollow.zero_grad(set_to_none=True)
    hollow.to_empty(device="cpu")
    for model in hollow.models().values():
        model.tie()
        if isinstance(model, PatchModel):
            model.counted = False
    replicated = step.layout.processes > 1
    if replicated:  # gradients have their places in the buffers that are exchanged
        for _, parameter in trainable(hollow):
            parameter.grad = torch.zeros_like(parameter)
    rule = optimizer.build(hollow)
    if step.in_backward:
        rule.in_backward(partial(_update, rule))
    _evaluate(hollow.model, step, evaluated)
    for _ in range(STEPS):
        for _ in range(min(step.micro_batches, MICRO_BATCHES)):
            hollow(step.batch(step.rows).to("cpu")).mean(ONES).backward()
        rule.step()
        rule.zero_grad(set_to_none=not replicated)
        _evaluate(hollow.model, step, evaluated)


def _update(optimizer: RuleOptimizer, group: Group, parameter: nn.Parameter) -> None:
    optimizer.update(group, [parameter])
    parameter.grad = None


@torch.no_grad()
def _evaluate(model: Transformer, step: Step, rows: int) -> None:
    for _ in range(VARIETY if model.config.head == "vocabulary" else 0):
        batch = step.batch(rows).to("cpu")
        context = Context(batch.positions, batch.documents)
        model.logprobs(batch.tokens, batch.targets, context)


@contextmanager
def _gaps_filled() -> Iterator[None]:
    """The heap without gaps, as in a process that has just started."""
    held, size = list[Tensor](), LARGEST
    while size >= SMALLEST:
        before = heap_end()
        block = torch.empty(size, dtype=torch.uint8)
        if heap_end() == before:  # it took the place of a gap
            held.append(block)
        else:
            size //= 2
        del block
    release_freed_memory()  # the end, which the search has enlarged
    yield
    held.clear()
