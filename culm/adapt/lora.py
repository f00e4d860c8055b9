"""Low-rank adapters (arXiv 2106.09685) on frozen linear layers.

x ---+---- base (frozen) ----(+)---> y = W x + scale * B A x
     |                        |
     +---- A ---- B * scale --+      A: (rank, inputs), B: (outputs, rank) from zero

With DoRA (arXiv 2402.09353) each row of the sum has a learned norm, initially that of W:

    y = m / |W + scale * B A| * (W x + scale * B A x)      m, |.|: (outputs,), the norm detached
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from culm.adapt.quantize.linear import QuantizedGrouped, QuantizedLinear
from culm.adapt.replace import Match, Patterns, linears, replace
from culm.config import Config, SettingError, listed
from culm.dtensor import local_shard
from culm.model.init import generator
from culm.model.linear import Linear, Split
from culm.model.norm import Norm
from culm.model.transformer import Transformer

TINY = 1e-30  # norm of a row of zeros


class LoRA(Config):
    """targets: patterns of linear layers, such as `blocks.*.attention.{q,v}`; default: all layers
    of the blocks. Experts and routers have no adapters; shared experts have.

    rank: inner width of an adapter. alpha: B A x is scaled by alpha / rank. dropout: of its input.
    rslora: scale by alpha / sqrt(rank) instead (arXiv 2312.03732).
    dora: learn the norm of each output row separately from its direction (arXiv 2402.09353).
    lora_plus_ratio: learning rate of B as a multiple of A's; LoRA+ (arXiv 2402.12354) uses 16.
    train_also: patterns of embedding, norms and linear layers to train in full.
    """

    kind: Literal["lora"] = "lora"
    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Patterns = ("blocks.*",)
    rslora: bool = False
    dora: bool = False
    lora_plus_ratio: PositiveFloat = 1.0
    train_also: Annotated[tuple[str, ...], BeforeValidator(listed)] = ()

    @property
    def scale(self) -> float:
        """Factor of B A x."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)

    def apply(self, model: Transformer, seed: int) -> int:
        """Freeze the model and add adapters to the targets; returns their number.

        A is initialised by name from the seed, so it is the same for every layout. The targets may
        be quantised (QLoRA, arXiv 2305.14314).

        Raises:
            ValueError: a pattern names no layer, or a layer is in targets and in train_also.
        """
        match = _outside_experts(model, linears(model, self.targets, Linear, QuantizedLinear))
        trained = self._trained(model)
        tied = model.config.tied and match("head", model.head)
        for name, module in trained.items():
            if match(name, module) or (tied and name == "embed"):
                raise SettingError(
                    f"train_also: {name} is also a target, or shares its weights; choose one"
                )
        model.requires_grad_(False)
        count = replace(model, match, lambda name, base: self._initialised(name, base, seed))
        for module in trained.values():
            module.requires_grad_(True)
        return count

    def _trained(self, model: Transformer) -> dict[str, nn.Module]:
        if not self.train_also:
            return {}
        match = linears(model, self.train_also, Linear, nn.Embedding, Norm, setting="train_also")
        return {name: module for name, module in model.named_modules() if match(name, module)}

    def _initialised(self, name: str, base: nn.Module, seed: int) -> LoRALinear:
        adapted = self.adapt(base)
        if adapted.a.device.type != "meta":
            # Kaiming-uniform with a = sqrt(5), as in the paper's code
            bound = adapted.a.shape[1] ** -0.5
            weight = torch.empty(adapted.a.shape)
            weight.uniform_(-bound, bound, generator=generator(seed, f"{name}.a"))
            adapted.a.data.copy_(weight)
        return adapted

    def adapt(self, base: nn.Module) -> LoRALinear:
        """One layer with an adapter of these settings, where A and B are zero."""
        assert isinstance(base, Linear | QuantizedLinear)
        return LoRALinear(base, self)


def _outside_experts(model: nn.Module, match: Match) -> Match:
    """The same without the layers inside quantised experts."""
    experts = tuple(f"{n}." for n, m in model.named_modules() if isinstance(m, QuantizedGrouped))
    return lambda name, module: match(name, module) and not name.startswith(experts)


class LoRALinear(nn.Module):
    """x: (..., inputs) -> (..., outputs); only `a`, `b` and, with DoRA, `magnitude` are trained.

    With DoRA each call computes the norms of the summed weights again, a second pass over them:
    merge a model for fast decoding.
    """

    def __init__(self, base: Linear | QuantizedLinear, settings: LoRA) -> None:
        super().__init__()
        outputs, inputs = base.out_features, base.in_features
        self.base, self.scale, self.dropout = base, settings.scale, settings.dropout
        self.lora_plus_ratio = settings.lora_plus_ratio
        self.enabled = True
        device = base.weight.device
        self.a = nn.Parameter(torch.zeros(settings.rank, inputs, device=device))
        self.b = nn.Parameter(torch.zeros(outputs, settings.rank, device=device))
        self.magnitude: nn.Parameter | None = None
        if settings.dora:
            self.magnitude = nn.Parameter(self._summed().norm(dim=1))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the merged weights."""
        packed = isinstance(self.base, QuantizedLinear)
        return torch.float32 if packed else self.base.weight.dtype

    def forward(self, x: Tensor) -> Tensor:
        out = self.base(x)
        if not self.enabled:
            return out
        a, b = local_shard(self.a).to(x.dtype), local_shard(self.b).to(x.dtype)
        added = F.linear(F.linear(F.dropout(x, self.dropout, self.training), a), b) * self.scale
        if self.magnitude is None:
            return out + added
        factor = self.factor()
        unbiased = out if self.base.bias is None else out - self.base.bias.to(out.dtype)
        # Not factor * (unbiased + added) + bias: this is exactly the base's output if factor is 1.
        return out + (factor - 1).to(x.dtype) * unbiased + factor.to(x.dtype) * added

    def divided(self, split: Split) -> Mapping[str, Split]:
        """How tensor parallelism divides it (`culm.model.linear.Divisible`).

        Raises:
            SettingError: DoRA needs the norms of whole rows.
        """
        if self.magnitude is not None:
            raise SettingError(
                "parallel.tensor: DoRA needs norms of whole rows of the weights; set "
                "train.adapt.dora to false, or use parallel.data=fsdp"
            )
        return (
            {"base": split, "b": "columns"} if split == "columns" else {"base": split, "a": split}
        )

    def factor(self) -> Tensor:
        """Factor of each row of W + scale * B A, (outputs,)."""
        if self.magnitude is None:
            return self.b.new_ones(len(self.b))
        return self.magnitude / self._norms()

    @torch.no_grad()
    def _summed(self) -> Tensor:
        """W + scale * B A in fp32; a quantised base is dequantised."""
        return self.base.matrix().float() + self.scale * (self.b.float() @ self.a.float())

    def _norms(self) -> Tensor:
        """|W + scale * B A| of each row, (outputs,); a constant for gradients, as in the paper."""
        return self._summed().norm(dim=1).clamp_min(TINY)

    def matrix(self) -> Tensor:
        """The weights of one plain layer that computes the same, (outputs, inputs)."""
        return self._merged() if self.enabled else self.base.matrix()

    @torch.no_grad()
    def _merged(self) -> Tensor:
        """(outputs, inputs), summed in fp32."""
        summed = self._summed()
        if self.magnitude is not None:
            summed *= (self.magnitude.float() / self._norms())[:, None]
        return summed

    def merged(self) -> Linear:
        """One plain layer that computes the same; quantised weights become fp32."""
        return plain(self._merged().to(self.dtype), self.base.bias)


def plain(weight: Tensor, bias: Tensor | None) -> Linear:
    """A linear layer with weight: (outputs, inputs) and bias: (outputs,)."""
    with torch.device("meta"):
        layer = Linear(weight.shape[1], weight.shape[0], bias is not None)
    layer.weight = nn.Parameter(weight)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


def adapters_of(model: nn.Module) -> dict[str, LoRALinear]:
    """The adapted layers by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}


def has_adapter(model: nn.Module) -> bool:
    """Whether any layer has an adapter."""
    return bool(adapters_of(model))


def is_adapter_only(model: nn.Module) -> bool:
    """Whether only adapters are trained, so that `disabled` gives the initial model."""
    adapters = adapters_of(model).values()
    own = {p for adapter in adapters for p in adapter.parameters(recurse=False)}
    return bool(own) and all(p in own for p in model.parameters() if p.requires_grad)


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Switch all adapters off in a `with` block: the reference model of a preference loss."""
    adapters = adapters_of(model).values()
    for adapter in adapters:
        adapter.enabled = False
    try:
        yield
    finally:
        for adapter in adapters:
            adapter.enabled = True
