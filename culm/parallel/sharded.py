"""Models of which each rank holds a part, and how to have them whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from culm.model.trunk import Trunk


def is_sharded(model: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """The whole weights on the first rank's CPU, nothing on the others; every rank takes part."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return cast(dict[str, Tensor], get_model_state_dict(model, options=options))


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
