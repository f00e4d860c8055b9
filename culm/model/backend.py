"""Place a model on a device, with an attention backend that a trial has shown to run there."""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch

from culm.config import SettingError
from culm.dtype import name_of
from culm.log import say
from culm.model.attend import attend
from culm.model.context import Context
from culm.model.score_rule import Backend, ScoreRule
from culm.model.transformer import Transformer

Choice = Backend | Literal["auto"]


def place(
    model: Transformer,
    device: torch.device,
    dtype: torch.dtype,
    backend: Choice = "auto",
    training: bool = False,
) -> Transformer:
    """Move a model to a device; set the dtype of activations and an attention backend that runs.

    Weights keep their precision. On the meta device, where nothing runs, the backend stays.

    Raises:
        SettingError: the backend cannot run there.
    """
    model.dtype = dtype
    model.to(device)
    if device.type != "meta":
        model.set_backend(choose_backend(device, backend, dtype, training))
    return model


def choose_backend(
    device: torch.device,
    wanted: Choice = "auto",
    dtype: torch.dtype = torch.float32,
    training: bool = False,
) -> Backend:
    """The attention backend for a device: the wanted one, if it passes a trial.

    auto: sdpa on a GPU; on a CPU flash_cpu in bf16, where it can be compiled; else blocks, on a GPU
    with a message. training: with gradients.

    Raises:
        SettingError: the wanted backend cannot run here.
    """
    if wanted == "auto":
        if device.type == "cuda":
            reason = trial(device, "sdpa", dtype, training)
            if reason is None:
                return "sdpa"
            say(f"Attention backend: blocks, because sdpa does not run on {device}: {reason}")
        elif device.type == "cpu" and dtype == torch.bfloat16:
            reason = trial(device, "flash_cpu", dtype, training)
            if reason is None:
                return "flash_cpu"
            say(f"Attention backend: blocks, which is slower than flash_cpu: {reason}")
        return "blocks"
    reason = trial(device, wanted, dtype, training)
    if reason is not None:
        use = "train" if training else "compute"
        raise SettingError(
            f"train.attention_backend: {wanted} does not {use} in {name_of(dtype)} on {device}: "
            f"{reason}; "
            "use train.attention_backend=auto"
        )
    return wanted


@cache
@torch.enable_grad()
def trial(device: torch.device, backend: Backend, dtype: torch.dtype, training: bool) -> str | None:
    """Why a backend fails on two small rows of documents here; None if it works."""
    if backend == "flash_cpu" and dtype != torch.bfloat16:
        return "it is for bfloat16"
    places, rule = torch.arange(64).expand(2, -1), ScoreRule(window=8)
    positions, documents = places % 40, places // 40
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 64, heads, 64, generator=random) for heads in (4, 2, 2))
    expected = attend(q, k, v, Context(positions, documents), rule, "blocks")
    context = Context(positions.to(device), documents.to(device))
    queries, keys, values = (
        x.to(device, dtype, copy=True).requires_grad_(training) for x in (q, k, v)
    )
    try:
        if backend in ("flash2", "flash3"):
            from culm.model.flash import activate

            activate(int(backend[-1]))
        out = attend(queries, keys, values, context, rule, backend)
        if training:
            out.float().sum().backward()
        off = float((out.detach().float().cpu() - expected).abs().max())
    except Exception as error:  # a compiler, a driver or a kernel may fail in any way
        return _reason(error)
    return None if off <= 0.05 else f"its result is off by {off:.2g}"


def _reason(error: Exception) -> str:
    """Its first sentence."""
    lines = str(error).strip().splitlines()
    return lines[0].partition(". ")[0].rstrip(".") if lines else type(error).__name__
