"""A model that is ready to use: from any path, on a device, in a precision."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from culm.adapt.quantize.linear import is_quantized
from culm.config import SettingError
from culm.convert.importer import load_adapter, load_adapters, load_model
from culm.device import choose_backend, choose_device, choose_precision
from culm.dtype import DTYPES, dtype_of
from culm.model.transformer import Transformer
from culm.tokenizer.tokenizer import Tokenizer


def read(
    path: str | Path,
    device: str = "auto",
    dtype: str | torch.dtype | None = None,
    adapter: str | Path | None = None,
    adapters: Mapping[str, str | Path] | None = None,
    mtp: bool = True,
) -> tuple[Transformer, Tokenizer]:
    """The parts of `culm.load`. mtp: keep heads of multi-token prediction, where there are any;
    plain decoding is faster without.
    """
    if adapter is not None and adapters:
        raise SettingError("adapters: one for all requests (adapter) leaves no choice; give either")
    place = choose_device(device)
    kind = None if dtype in (None, "auto") else dtype_of(dtype)
    if kind == torch.float16 and place.type == "cpu":
        raise SettingError("dtype: float16 has no fast products on a CPU; take bfloat16")
    model, tokenizer = load_model(path, place)
    if not mtp:
        model.drop_mtp()
    if adapter is not None:
        load_adapter(model, adapter)
    if adapters:
        load_adapters(model, adapters)
    if kind is None:
        kind = _choose(model, place, fastest=dtype == "auto")
    for weight in model.parameters():  # not the buffers: angles and scales keep their precision
        weight.data = weight.data.to(kind)
    model.dtype = kind
    model.set_backend(choose_backend(place, dtype=kind))
    return model, tokenizer


def _choose(model: Transformer, device: torch.device, fastest: bool) -> torch.dtype:
    # The fast kernels for weights of few bits take bf16; they are what such a model is for.
    if is_quantized(model):
        return torch.bfloat16
    if fastest:
        return DTYPES[choose_precision(device)]
    return torch.float32 if device.type == "cpu" else torch.bfloat16
