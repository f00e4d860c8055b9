"""Muon: momentum whose direction is made near-orthogonal (Jordan 2024; arXiv 2502.16982).

Hidden matrices, those of experts too, take orthogonalised steps; embeddings, heads, norms and
adapters take AdamW steps, in the same optimizer object: the loop and the checkpoint see one.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from culm.config import Config
from culm.model.transformer import Transformer
from culm.optim.groups import groups_of, hidden_matrices, trainable
from culm.parallel.sharded import full_tensor, like

# Quintic whose iteration pushes singular values towards one from anywhere in (0, 1].
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(Config):
    """rate: of hidden matrices; an update has the root mean square 0.2 * rate, about that of AdamW
    (Moonlight scaling), so that rates of AdamW carry over. adamw_rate: of everything else.

    In a model with a scaling rule they are those of its base; the rate of hidden matrices falls
    with the root of the width (`culm.model.scaling`).
    """

    kind: Literal["muon"] = "muon"
    rate: PositiveFloat = 3e-3
    momentum: float = Field(0.95, ge=0, lt=1)
    weight_decay: NonNegativeFloat = 0.1
    adamw_rate: PositiveFloat = 3e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        hidden = hidden_matrices(module)
        named = trainable(module)
        matrices = [(n, p) for n, p in named if p in hidden]
        rest = [(n, p) for n, p in named if p not in hidden]
        turned = groups_of(module, matrices, self.rate, self.weight_decay, self.eps, hidden)
        others = groups_of(module, rest, self.adamw_rate, self.weight_decay, self.eps)
        groups = [group | {"orthogonal": True} for group in turned]
        groups += [group | {"orthogonal": False} for group in others]
        return MuonOptimizer(groups, self, _precision(module))


class MuonOptimizer(torch.optim.Optimizer):
    """Groups with `orthogonal` take Muon steps, the others AdamW steps."""

    def __init__(self, groups: list[dict], config: Muon, precision: torch.dtype) -> None:
        super().__init__(groups, {"lr": config.rate})
        self.config, self.precision = config, precision

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                muon = group["orthogonal"]
                update = self._muon(parameter) if muon else self._adamw(parameter, group["eps"])
                parameter.add_(update, alpha=-group["lr"])

    def _muon(self, parameter: nn.Parameter) -> Tensor:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(gradient, 1 - self.config.momentum)
        nesterov = gradient.lerp(state["momentum"], self.config.momentum)
        scale = 0.2 * max(parameter.shape[-2:]) ** 0.5
        # A shard has no direction of its own: every rank orthogonalises the whole matrix.
        update = orthogonalize(full_tensor(nesterov).to(self.precision)).to(parameter.dtype)
        update = like(update, parameter) * scale
        if parameter.ndim > 2:  # the momentum of an idle expert is small, its direction is not
            update = update * (gradient.abs().sum((-2, -1), keepdim=True) > 0)
        return update

    def _adamw(self, parameter: nn.Parameter, eps: float) -> Tensor:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)  # no wait to read it
            state["mean"] = torch.zeros_like(parameter)
            state["square"] = torch.zeros_like(parameter)
        state["step"] += 1
        first, second = self.config.betas
        state["mean"].lerp_(gradient, 1 - first)
        state["square"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        root = (state["square"] / (1 - second ** state["step"])).sqrt_().add_(eps)
        return state["mean"] / (1 - first ** state["step"]) / root


def _precision(module: nn.Module) -> torch.dtype:
    """That of the model's activations: bf16 where this machine multiplies it fast."""
    return next((m.dtype for m in module.modules() if isinstance(m, Transformer)), torch.float32)


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration towards the nearest semi-orthogonal matrix; (..., R, C) fp32.

    Singular values end near 1 (0.7 to 1.2), which is all that the method needs: bf16 is enough.
    """
    a, b, c = COEFFICIENTS
    wide = matrix.shape[-2] <= matrix.shape[-1]
    x = matrix if wide else matrix.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT
