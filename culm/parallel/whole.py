"""Parameters of which each rank of an axis holds a part, and the whole of them for inference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from culm.dtensor import full_tensor
from culm.parallel.collectives import part


def shard_parameter(module: nn.Module, name: str, dim: int, axis: DeviceMesh) -> None:
    """Keep the own part of a parameter along a dimension."""
    whole = module.get_parameter(name)
    own = part(whole.detach(), dim, axis).contiguous().clone()
    shard = DTensor.from_local(own, axis, [Shard(dim)], run_check=False)
    setattr(module, name, nn.Parameter(shard, requires_grad=whole.requires_grad))


@contextmanager
def whole_parameters(model: nn.Module) -> Iterator[None]:
    """Plain parameters in place of sharded ones; every rank takes part."""
    full, changed = dict[int, nn.Parameter](), []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(parameter, DTensor):
                if id(parameter) not in full:
                    value = full_tensor(parameter.detach())
                    full[id(parameter)] = nn.Parameter(value, requires_grad=False)
                changed.append((module, name, parameter))
                setattr(module, name, full[id(parameter)])
    try:
        yield
    finally:
        for module, name, parameter in changed:
            setattr(module, name, parameter)
