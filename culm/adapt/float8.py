"""Training with matmuls in fp8, by torchao: e4m3 forward, e5m2 or e4m3 gradients, a scale a tensor.

    forward    y  = fp8(x) fp8(W)^T
    backward   dx = fp8(dy) fp8(W),   dW = fp8(dy)^T fp8(x)

Master weights, norms, attention, embeddings and the head are as in bf16 (arXiv 2209.05433).
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from culm.adapt.replace import replace
from culm.config import SettingError
from culm.dtensor import local_shard
from culm.model.linear import Linear
from culm.model.transformer import Transformer

MULTIPLE = 16  # of both sizes of a layer, which the kernels ask for
LEAST = (8, 9)  # compute capability with fp8: Ada, Hopper and later


class Float8Linear(Linear):
    """A linear layer whose training matmuls are in fp8; in inference they are as before.

    Weight and bias are the same parameters as those of the replaced layer, with their names:
    optimizers, checkpoints and layouts see no difference. emulate: compute in fp32 with numbers
    rounded to fp8, on any device, for tests.
    """

    def __init__(self, linear: Linear, emulate: bool = False) -> None:
        from torchao.float8.config import Float8LinearConfig
        from torchao.float8.float8_linear import Float8Linear as Reference

        with torch.device("meta"):
            super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        self.weight, self.bias, self.residual = linear.weight, linear.bias, linear.residual
        # The number of tokens, the inner size of dW, need be no multiple.
        self.config = Float8LinearConfig(emulate=emulate, pad_inner_dim=True)
        with torch.device("meta"):
            self.matmuls = Reference(MULTIPLE, MULTIPLE, config=self.config).linear_mm_config

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or x.is_meta:
            return super().forward(x)
        from torchao.float8.float8_linear import matmul_with_hp_or_float8_args

        weight = local_shard(self.weight).to(x.dtype)
        y = matmul_with_hp_or_float8_args.apply(x, weight.t(), self.matmuls, self.config)
        return y if self.bias is None else y + local_shard(self.bias).to(x.dtype)


def check_float8(device: torch.device) -> None:
    """Whether a device trains in fp8.

    Raises:
        ImportError: torchao is not installed.
        SettingError: the device has no fp8.
    """
    if find_spec("torchao") is None:
        raise ImportError("train.precision: fp8 needs torchao; pip install 'culm[fp8]'")
    known = device.type == "cuda" and torch.version.hip is None
    if not known or torch.cuda.get_device_capability(device) < LEAST:
        raise SettingError(
            f"train.precision: {device} has no fp8, which needs an NVIDIA GPU of compute "
            "capability 8.9 or more (RTX 40, L4, L40S, H100 and later); use bf16"
        )


def use_float8(model: Transformer, emulate: bool = False) -> int:
    """Train the linear layers of the blocks in fp8; returns their number.

    Experts, which are multiplied in groups, stay in bf16.

    Raises:
        SettingError: no layer has sizes that fp8 can multiply.
    """

    def fits(name: str, module: nn.Module) -> bool:
        if not isinstance(module, Linear) or not name.startswith("blocks."):
            return False
        return module.in_features % MULTIPLE == module.out_features % MULTIPLE == 0

    def make(name: str, module: Any) -> nn.Module:
        return Float8Linear(module, emulate)

    try:
        return replace(model, fits, make)
    except ValueError:
        raise SettingError(
            "train.precision: no linear layer of the model has sizes that are multiples of "
            f"{MULTIPLE}, as fp8 needs; use bf16"
        ) from None
