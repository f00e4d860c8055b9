"""How scores are computed from queries and keys, and which keys a query sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

# What each does: `attend`.
Backend = Literal["sdpa", "flex", "blocks", "flash2", "flash3", "flash_cpu"]


@dataclass(frozen=True)
class ScoreRule:
    """How one layer computes its attention scores, and what it masks.

    scale: factor of the dot products; D^-0.5 if not given.
    window: how many positions back a query sees, itself included; None is all.
    sink_tokens: tokens at the start of a document that stay visible in addition to a window
        (StreamingLLM, arXiv 2309.17453).
    softcap: scores become softcap * tanh(scores / softcap) (Gemma 2, arXiv 2408.00118).
    slopes: (H,) what a score loses per position between query and key (ALiBi, arXiv 2108.12409).
    sink_logits: (H,) the score of one more key, without a value, in every softmax (GPT-OSS).
    """

    scale: float | None = None
    window: int | None = None
    sink_tokens: int = 0
    softcap: float | None = None
    slopes: Tensor | None = None
    sink_logits: Tensor | None = None
