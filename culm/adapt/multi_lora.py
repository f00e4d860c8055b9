"""Several low-rank adapters beside one model in memory, chosen for each row of a batch.

row 0   no adapter   ->  W x
row 1   poet         ->  W x + B[0] A[0] x      A: (N, rank, inputs), B: (N, outputs, rank): those
row 2   judge        ->  W x + B[1] A[1] x      of all N adapters, with their scales in B

The products with W are one for all rows; those with A and B are for the rows that have an adapter
(S-LoRA, arXiv 2311.03285, does the same with kernels of its own). Which rows these are stands in
`Context.adapters`; each block hands it to its layers for the time of its forward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from culm.adapt.lora import LoRALinear
from culm.adapt.replace import replace
from culm.config import SettingError
from culm.model.attention.mla import LatentAttention
from culm.model.context import Context
from culm.model.transformer import Transformer

Rows = tuple[Tensor, Tensor]  # rows of the batch that have an adapter, and its number; (N,) each
Layers = Mapping[str, LoRALinear]  # of one adapter, by the name of the layer that each stands at

_rows: ContextVar[Rows | None] = ContextVar("rows", default=None)


class MultiLoRALinear(nn.Module):
    """x: (B, T, inputs) -> (B, T, outputs), each row through its own adapter or none.

    Adapters that leave this layer alone, or have a lower rank, are filled up with zeros. Lengths of
    rows (DoRA) are computed once: weights may not change afterwards.
    """

    factor: Tensor | None

    def __init__(
        self, base: nn.Module, names: Sequence[str], adapters: Sequence[LoRALinear | None]
    ) -> None:
        super().__init__()
        known = [adapter for adapter in adapters if adapter is not None]
        self.base, self.names = base, tuple(names)
        rank = max(len(adapter.a) for adapter in known)
        device, (outputs, inputs) = known[0].a.device, (len(known[0].b), known[0].a.shape[1])
        a = torch.zeros(len(names), rank, inputs, device=device)
        b = torch.zeros(len(names), outputs, rank, device=device)
        factor = torch.ones(len(names), outputs, device=device)
        for number, adapter in enumerate(adapters):
            if adapter is not None:
                own = len(adapter.a)
                a[number, :own], b[number, :, :own] = adapter.a.data, adapter.b.data * adapter.scale
                factor[number] = adapter.factor().detach()
        self.a, self.b = (nn.Parameter(stack, requires_grad=False) for stack in (a, b))
        lengths = any(adapter.magnitude is not None for adapter in known)
        self.register_buffer("factor", factor if lengths else None)

    def forward(self, x: Tensor) -> Tensor:
        out, chosen = self.base(x), _rows.get()
        if chosen is None:
            return out
        if x.ndim != 3:
            raise ValueError("adapters: this model has layers that do not see its rows apart")
        rows, numbers = chosen
        narrow = x[rows] @ self.a[numbers].to(x.dtype).mT
        added = narrow @ self.b[numbers].to(x.dtype).mT
        if self.factor is not None:
            bias, factor = self.base.bias, self.factor[numbers, None]
            product = out[rows] if bias is None else out[rows] - bias.to(out.dtype)
            added = factor.to(x.dtype) * added + (factor - 1).to(x.dtype) * product
        return out.index_add(0, rows, added)


def attach_adapters(model: Transformer, adapters: Mapping[str, Layers]) -> int:
    """Put all adapters beside the layers of a model, whose weights stay; gives to how many layers.

    adapters: by name; their layers were made for this model (`culm.convert.peft.read_adapters`).

    Raises:
        SettingError: there is none, or one adapts a layer that does not see rows of a batch apart.
    """
    for name, layers in adapters.items():
        if odd := [layer for layer in layers if not layer.startswith("blocks.")]:
            raise SettingError(
                f"adapters.{name}: it adapts {odd[0]}, which is not of a block; merge it (culm "
                "import) and serve the result by itself"
            )
    targets = {layer for layers in adapters.values() for layer in layers}
    for layer in sorted(targets):
        above, _, part = layer.rpartition(".")
        if part in ("k", "v") and isinstance(model.get_submodule(above), LatentAttention):
            raise SettingError(
                f"adapters: {layer} is absorbed into queries while decoding, which is the same for "
                "all rows; merge the adapter (culm import) and serve the result by itself"
            )
    if not targets:
        raise SettingError("adapters: there is none to put beside the model")

    def stacked(name: str, base: nn.Module) -> MultiLoRALinear:
        own = [layers.get(name) for layers in adapters.values()]
        return MultiLoRALinear(base, list(adapters), own)

    model.requires_grad_(False)
    count = replace(model, lambda name, _: name in targets, stacked)
    for block in model.blocks:
        block.register_forward_pre_hook(_enter)
        block.register_forward_hook(_leave, always_call=True)
    return count


def _enter(block: nn.Module, inputs: tuple[Any, ...]) -> None:
    _, context, *_ = inputs
    assert isinstance(context, Context)
    _rows.set(context.adapters)


def _leave(block: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
    _rows.set(None)


def adapter_names(model: nn.Module) -> tuple[str, ...]:
    """The names of the adapters that `reside` put beside a model."""
    layers = (module for module in model.modules() if isinstance(module, MultiLoRALinear))
    return next((layer.names for layer in layers), ())


def check_adapter(adapter: str | None, names: Sequence[str]) -> None:
    """ValueError if a request names an adapter that is not there."""
    if adapter is not None and adapter not in names:
        raise ValueError(
            f"adapter: there is none called {adapter!r} here; known: {', '.join(names) or 'none'}"
        )


def adapter_rows(
    adapters: Sequence[str | None], names: Sequence[str], device: torch.device
) -> Rows | None:
    """What stands in `Context.adapters` for rows with these adapters; None: no row has one."""
    chosen = [(row, names.index(name)) for row, name in enumerate(adapters) if name is not None]
    if not chosen:
        return None
    rows, numbers = torch.tensor(chosen, device=device).unbind(1)
    return rows, numbers
