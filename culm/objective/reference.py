"""The reference model that a policy is compared with: the policy as it was at the start."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from culm.adapt.lora import disabled, is_adapter_only
from culm.model.transformer import Transformer


def reference_of(model: Transformer) -> Transformer | None:
    """A frozen copy; None where only adapters are trained: switching them off gives the start."""
    return None if is_adapter_only(model) else copy.deepcopy(model).requires_grad_(False)


@contextmanager
def frozen(model: Transformer, reference: Transformer | None) -> Iterator[Transformer]:
    """The reference of a model, without gradients."""
    with torch.no_grad():
        if reference is not None:
            yield reference
        else:
            with disabled(model):
                yield model
