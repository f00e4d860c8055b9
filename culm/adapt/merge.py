"""Adapters folded into their layers, taken out again, and whether the model stayed the same."""

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

ROWS, TOKENS = 2, 16  # of the random text that a merge is verified on


@dataclass(frozen=True)
class Merged:
    """What a merge did. layers: the adapted ones, if kept; learned: names of trained parameters."""

    count: int
    layers: dict[str, LoRALinear]
    learned: frozenset[str]
    config: TransformerConfig


def merge(model: Transformer, keep: bool = False) -> Merged:
    """Fold every adapter into its layer, in place, and let all weights be trained again.

    A head that shared the embedding's weights has its own afterwards: the embedding is not adapted.
    keep: hold on to the adapted layers, for `unmerge`; their weights are then in memory twice.
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

    Nothing is subtracted, which would round: these are the very modules that were taken out, so an
    optimizer that holds their parameters goes on.

    Raises:
        ValueError: the merge did not keep them.
    """
    if not merged.layers:
        raise ValueError("merged: it kept no layers; merge(model, keep=True) does")
    for name, layer in merged.layers.items():
        model.set_submodule(name, layer)
    model.config = merged.config
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in merged.learned)


def merge_verified(
    model: Transformer, tolerance: float | None = None, keep: bool = False
) -> Merged:
    """Merge, and compare the logits of random tokens before and after; the difference is told.

    tolerance: the greatest difference as a share of the greatest logit (of 1 where all are less);
    if not given, 1e-3, or 16 roundings of weights in half precision.

    Raises:
        SettingError: they differ by more. With `keep` the model is then as it was before, without
            it the merged weights stay in place.
    """
    if tolerance is None:
        kinds = {layer.dtype for layer in adapters_of(model).values()}
        tolerance = max(1e-3, *(16 * torch.finfo(kind).eps for kind in kinds))
    before = _logits(model)
    merged = merge(model, keep)
    difference = float((_logits(model) - before).abs().max())
    size = max(1.0, float(before.abs().max()))
    told = f"logits of random tokens differ by {difference:.2g} at most, the greatest is {size:.2g}"
    if not difference <= tolerance * size:  # NaN is refused too
        if keep:
            unmerge(model, merged)
        raise SettingError(f"merge: {told}: more than the tolerance of {tolerance:.2g} allows")
    say(f"Merged the adapters of {merged.count} layers: {told}.")
    return merged


@torch.no_grad()
def _logits(model: Transformer) -> Tensor:
    """(ROWS, TOKENS, V) in fp32 activations, whatever the model computes in."""
    length, size = min(TOKENS, model.config.context), model.config.vocabulary
    tokens = torch.randint(size, (ROWS, length), generator=generator(0, "merge")).to(model.device)
    training, dtype = model.training, model.dtype
    model.eval()
    model.dtype = torch.float32
    try:
        with torch.compiler.set_stance("force_eager"):  # a shape of its own
            return model(tokens)
    finally:
        model.dtype = dtype
        model.train(training)
