"""Whole parameters in place of those of which each rank holds a part, for inference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.tensor import DTensor

from culm.dtensor import full_tensor


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
