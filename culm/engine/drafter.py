"""The interface of drafters, which propose tokens for speculative decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from culm.engine.request import Running
from culm.model.context import Context, LayerContext

# Tokens (N,) from logits (N, V), each sampled as the engine will after the row's output and draft.
Choose = Callable[[Tensor], Tensor]


class Window(NamedTuple):
    """What a step has read of each of N rows.

    starts: positions of the first tokens. states: (B, W, E) of the trunk for them, B >= N.
    context: as it was after the trunk.
    """

    starts: list[int]
    states: Tensor
    context: LayerContext


class Drafter(Protocol):
    """Guesses tokens that may follow the output of each row; the model decides on them.

    size: maximum tokens of a draft.
    rollback: maximum tokens between the end of what a step has read and the start of the next
        window; layers with a sliding window store this many more tokens.
    with_mtp: whether the cache has layers for heads of multi-token prediction.
    """

    size: int
    rollback: int
    with_mtp: bool

    def prefill(self, tokens: Tensor, context: Context, following: Tensor) -> Tensor:
        """Read prompts (N, T) into the cache; what `Transformer.hidden` gives for them.

        following: (N, size) tokens after those that are read, 0 after the end of a prompt.
        """

    def window(self, rows: Sequence[Running]) -> int:
        """Tokens that the next step reads of each row, at least its newest and its draft."""

    def draft(self, rows: Sequence[Running], window: Window | None, choose: Choose) -> None:
        """Extend the empty drafts of rows whose output has grown since the window was read.

        window: None where the step read one token of each row without keeping states.
        """
