"""More rows for more tokens: a vocabulary that grows under a trained model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from culm.adapt.lora import plain
from culm.config import SettingError
from culm.model.linear import Linear
from culm.model.transformer import Transformer


@torch.no_grad()
def grow(model: Transformer, used: int, vocabulary: int) -> None:
    """Let ids from `used` to `vocabulary` begin as the mean of those below, in place.

    A model has often more rows than its tokenizer has tokens; these were never trained, and are
    begun anew too. With the mean, a new token is at first no likelier than the others are together
    on average, so that the model says what it said before. The same is done to a head of its own.

    Raises:
        SettingError: the head is quantised.
    """
    head = model.head
    if not (model.config.tied or isinstance(head, Linear)):
        raise SettingError("vocabulary: a quantised head cannot grow; start from the model before")
    size = max(vocabulary, model.config.vocabulary)
    weight = _grown(model.embed.weight, used, vocabulary, size)
    model.embed = nn.Embedding(size, model.config.width, _weight=weight, _freeze=False)
    model.config = model.config.model_copy(update={"vocabulary": size})
    if model.config.tied:
        model.head = plain(weight, None)
        model.tie()
    elif isinstance(head, Linear) and model.config.head == "vocabulary":
        bias = None if head.bias is None else _grown(head.bias, used, vocabulary, size)
        model.head = plain(_grown(head.weight, used, vocabulary, size), bias)


def _grown(rows: Tensor, used: int, vocabulary: int, size: int) -> Tensor:
    """rows: (V, ...) -> (size, ...), in which those from `used` to `vocabulary` are the mean."""
    grown = rows.new_empty(size, *rows.shape[1:])
    grown[: len(rows)] = rows
    grown[used:vocabulary] = rows[:used].float().mean(0)
    return grown
