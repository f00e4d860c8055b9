"""Merge adapters into their layers, verify the result, and take them out again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from culm.adapt.lora import LoRALinear, adapters_of
from culm.adapt.replace import note_untied, replace
from culm.config import SettingError
from culm.log import say
from culm.model.init import generator
from culm.model.transformer import Transformer, TransformerConfig

ROWS, TOKENS = 2, 16  # size of the random text for verifying a merge


@dataclass(frozen=True)
class Merged:
    """What a merge changed. layers: the adapted ones, if kept; learned: trained parameters."""

    count: int
    layers: dict[str, LoRALinear]
    learned: frozenset[str]
    config: TransformerConfig


def merge(model: Transformer, keep: bool = False) -> Merged:
    """Merge every adapter into its layer, in place, and make all weights trainable.

    A tied head has its own weights afterwards: the embedding is not adapted. keep: store the
    adapted layers for `unmerge`; their weights are then in memory twice.
    """
    learned = frozenset(name for name, p in model.named_parameters() if p.requires_grad)
    kept = adapters_of(model) if keep else {}
    config = model.config
    count = replace(model, lambda _, m: isinstance(m, LoRALinear), lambda _, m: m.merged())  # type: ignore[operator]
    model.requires_grad_(True)
    note_untied(model)
    return Merged(count, kept, learned, config)


def unmerge(model: Transformer, merged: Merged) -> None:
    """Put the adapted layers back, exactly.

    These are the same modules, without a subtraction that would round, so an optimizer of their
    parameters stays valid.

    Raises:
        ValueError: the merge did not keep them.
    """
    if not merged.layers:
        raise ValueError("merged: it contains no layers; use merge(model, keep=True)")
    for name, layer in merged.layers.items():
        model.set_submodule(name, layer)
    model.config = merged.config
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in merged.learned)


def merge_verified(
    model: Transformer, tolerance: float | None = None, keep: bool = False
) -> Merged:
    """Merge, compare the logits of random tokens before and after, and report the difference.

    tolerance: maximum difference relative to the largest logit, or to 1 if that is larger; if not
    given, 1e-3, or 16 rounding errors of weights in half precision.

    Raises:
        SettingError: they differ by more. With `keep` the model is then unmerged; without it the
            merged weights stay.
    """
    if tolerance is None:
        kinds = {layer.dtype for layer in adapters_of(model).values()}
        tolerance = max(1e-3, *(16 * torch.finfo(kind).eps for kind in kinds))
    before = _logits(model)
    merged = merge(model, keep)
    difference = float((_logits(model) - before).abs().max())
    size = max(1.0, float(before.abs().max()))
    found = f"logits of random tokens differ by up to {difference:.2g}; the largest is {size:.2g}"
    if not difference <= tolerance * size:  # NaN is refused too
        if keep:
            unmerge(model, merged)
        raise SettingError(f"merge: {found}: more than the tolerance of {tolerance:.2g} allows")
    say(f"Merged the adapters of {merged.count} layers: {found}.")
    return merged


@torch.no_grad()
def _logits(model: Transformer) -> Tensor:
    """(ROWS, TOKENS, V) with activations in fp32, whatever the dtype of the model."""
    length, size = min(TOKENS, model.config.context), model.config.vocabulary
    tokens = torch.randint(size, (ROWS, length), generator=generator(0, "merge")).to(model.device)
    training, dtype = model.training, model.dtype
    model.eval()
    model.dtype = torch.float32
    try:
        with torch.compiler.set_stance("force_eager"):  # a shape that occurs only here
            return model(tokens)
    finally:
        model.dtype = dtype
        model.train(training)
