"""Models of which each rank holds a part, and how to have them whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from culm.dtensor import full_tensor
from culm.model.elsewhere import Elsewhere
from culm.model.trunk import Trunk
from culm.parallel.ranks import Ranks


def is_sharded(model: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def is_divided(model: nn.Module) -> bool:
    """Whether other ranks have parts that this one does not."""
    return is_sharded(model) or any(isinstance(part, Elsewhere) for part in model.modules())


def needs_others(model: nn.Module, ranks: Ranks) -> bool:
    """Whether this rank cannot use the model alone: others have parts of its weights, or compute
    parts of its rows, as context-parallel ones do with whole weights.
    """
    return is_divided(model) or ranks.processes > ranks.count


def state_of(model: nn.Module, ranks: Ranks) -> dict[str, Tensor]:
    """The whole weights on the CPU of the rank that writes, nothing on the others; every rank takes
    part.
    """
    return gathered(model.state_dict(), ranks)


def gathered(named: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """The tensors of all ranks, whole, on the CPU of the rank that writes; nothing on the others.

    named: what this rank has of them; ranks of a pipeline have different names. Every rank takes
    part, and one tensor is gathered at a time.
    """
    kept: dict[str, Tensor] = {}
    if ranks.mesh is None or ranks.mesh.axes.pipeline.size == 1:
        for name, tensor in named.items():
            value = full_tensor(tensor.detach())
            if ranks.writer:
                kept[name] = value.cpu().contiguous()
        return kept
    axis, seen = ranks.mesh.axes.pipeline, set[str]()
    device = next(iter(named.values())).device
    own = {name: (tensor.shape, tensor.dtype) for name, tensor in named.items()}
    known = axis.gather_objects((own, ranks.writer))
    target = next((rank for rank, (_, writes) in enumerate(known) if writes), None)
    for source, (shapes, _) in enumerate(known):
        for name, (shape, dtype) in shapes.items():
            if name in seen:
                continue
            seen.add(name)
            value = torch.empty(shape, dtype=dtype, device=device)
            if axis.rank == source:
                value = full_tensor(named[name].detach()).to(device)
            if target is not None and axis.rank in (source, target):
                value = axis.move(value, source, target)
            if ranks.writer:
                kept[name] = value.cpu().contiguous()
    return kept


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """The model for inference: without dropout, not compiled, gathered once on every rank.

    Generation has a new shape at each call, and each would be compiled. Ranks may call a gathered
    model different numbers of times, as answers differ in length; if every call gathered the
    weights, they would deadlock.
    """
    training = model.training
    parts = [part for part in model.modules() if isinstance(part, FSDPModule)]
    model.eval()
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        with ExitStack() as stack:
            for trunk in (part for part in model.modules() if isinstance(part, Trunk)):
                stack.enter_context(trunk.whole())
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            yield
    finally:
        model.train(training)
        for part in parts:
            part.set_reshard_after_forward(part is not model, recurse=False)
            part.reshard()
