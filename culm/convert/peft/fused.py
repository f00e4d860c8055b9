"""Adapters of our layers as one of the layer that they are in the other library.

The q, k and v of Phi-3 are one `qkv_proj` there. Adapters with an A of their own become one of a
higher rank; an A that they share, as after reading such an adapter, stays as it is.

    W = [Wq; Wk; Wv]    A = [Aq; Ak; Av]    B = diag(Bq, Bk, Bv)    rank rq + rk + rv
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from culm.adapt.lora import LoRALinear
from culm.adapt.quantize.linear import QuantizedLinear
from culm.convert.rules import TensorRule
from culm.model.linear import Linear


class WrittenAdapter(NamedTuple):
    """tensors: by our names of its parameters; scale: of B A x."""

    tensors: dict[str, Tensor]
    rank: int
    scale: float


@torch.no_grad()
def joined(layers: Sequence[nn.Module], rule: TensorRule) -> WrittenAdapter:
    """The adapter of a layer there. layers: ours, in the order of the rule; at least one is
    adapted, and the others do not change."""
    adapted = [layer for layer in layers if isinstance(layer, LoRALinear)]
    first = adapted[0]
    shared = all(torch.equal(layer.a, first.a) for layer in adapted)
    a = first.a if shared else torch.cat([layer.a for layer in adapted])
    rows, norms, start = [], [], 0
    for layer in layers:
        base = layer.base if isinstance(layer, LoRALinear) else layer
        assert isinstance(base, Linear | QuantizedLinear)
        b = a.new_zeros(base.out_features, len(a))
        if isinstance(layer, LoRALinear):
            end = start + layer.b.shape[1]
            b[:, start:end] = layer.b * (layer.scale / first.scale)
            start = start if shared else end
        rows.append(b)
        if first.magnitude is not None:
            trained = layer.magnitude if isinstance(layer, LoRALinear) else None
            norms.append(base.matrix().float().norm(dim=1) if trained is None else trained)
    tensors = {"a": a, "b": rule.write(rows)[0]}
    if norms:
        tensors["magnitude"] = rule.write(norms)[0]
    return WrittenAdapter({n: t.detach() for n, t in tensors.items()}, len(a), first.scale)
