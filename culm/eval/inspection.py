"""The inside of a model while it reads a text: attention, predictions of layers, activations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor, nn

from culm.model.ability import require_next_token
from culm.model.attention.part import AttentionModule
from culm.model.block import Block
from culm.model.context import Context
from culm.model.transformer import Transformer

BINS = 40


@torch.inference_mode()
def attention_maps(model: Transformer, ids: Sequence[int]) -> dict[int, Tensor]:
    """ids: T tokens -> by layer (H, T, T) fp32; row t is the distribution of t over tokens 0..t.

    Layers without softmax are left out.
    """
    found: dict[int, Tensor] = {}

    def catch(index: int, module: nn.Module, inputs: tuple) -> None:
        assert isinstance(module, AttentionModule)
        x, context, _ = inputs
        weights = module.weights(x, context)
        if weights is not None:
            found[index] = weights[0].float().cpu()

    _watch(model, ids, "attention", catch)
    return found


@torch.inference_mode()
def logit_lens(model: Transformer, ids: Sequence[int]) -> Tensor:
    """ids: T tokens -> (layers + 1, T, V): log-probabilities if the model ended before each block.

    The last row is the output of the full model (nostalgebraist, 2020).

    Raises:
        SettingError: the model gives no logits of the next token.
    """
    require_next_token(model)
    states: list[Tensor] = []
    _watch(model, ids, "", lambda _, __, inputs: states.append(inputs[0][0]))
    early = [model.logits(model.norm(x)[None] * model.head_scale)[0] for x in states]
    early.append(model(_tokens(model, ids))[0])
    return torch.stack([logits.log_softmax(-1).cpu() for logits in early])


class Spread(NamedTuple):
    """A histogram of numbers: edges (BINS + 1,), counts (BINS,)."""

    edges: Tensor
    counts: Tensor
    mean: float
    std: float
    largest: float


def weights_of(model: Transformer) -> Iterator[tuple[str, Spread]]:
    """A histogram per matrix name, over all layers that have it."""
    parts: dict[str, list[Tensor]] = {}
    for name, tensor in model.named_parameters():
        if tensor.dim() > 1:
            words = ["*" if word.isdigit() else word for word in name.split(".")]
            parts.setdefault(".".join(words), []).append(tensor.detach().flatten())
    for name, tensors in parts.items():
        yield name, spread(torch.cat(tensors))


@torch.inference_mode()
def activations_of(model: Transformer, ids: Sequence[int]) -> Iterator[tuple[str, Spread]]:
    """The residual stream before each block."""
    found: list[tuple[str, Spread]] = []

    def catch(index: int, module: nn.Module, inputs: tuple) -> None:
        found.append((f"before blocks.{index}", spread(inputs[0].flatten())))

    _watch(model, ids, "", catch)
    yield from found


def spread(numbers: Tensor) -> Spread:
    """The histogram of all numbers of a tensor."""
    x = numbers.float().cpu()
    low, high = float(x.min()), float(x.max())
    counts = torch.histc(x, BINS, low, high if high > low else low + 1.0)
    edges = torch.linspace(low, high, BINS + 1)
    return Spread(edges, counts, float(x.mean()), float(x.std()), float(x.abs().max()))


def _tokens(model: Transformer, ids: Sequence[int]) -> Tensor:
    return torch.tensor([list(ids)], device=model.device)


def _watch(model: Transformer, ids: Sequence[int], part: str, catch) -> None:
    """Call catch(layer, module, inputs) before a part of every block, or the block itself."""
    with ExitStack() as hooks:
        for index, block in enumerate(model.blocks):
            assert isinstance(block, Block)
            module = block.get_submodule(part)
            hook = module.register_forward_pre_hook(
                lambda module, inputs, index=index: catch(index, module, inputs)
            )
            hooks.callback(hook.remove)
        tokens = _tokens(model, ids)
        model.hidden(tokens, Context.plain(tokens))
