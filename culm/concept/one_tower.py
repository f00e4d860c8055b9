"""One-tower diffusion LCM (arXiv 2412.08821): clean and noisy concepts in one Transformer.

    clean  s_0 s_1 s_2 ...      clean n attends to clean <= n
    noisy      x_1 x_2 x_3 ...  noisy n attends to clean < n and to itself

The paper interleaves both; here the noisy ones come second, at the same positions. The mask is the
same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor

from culm.concept.denoising import DiffusionConfig, DiffusionNetwork
from culm.concept.diffusion import Predict
from culm.concept.network import History
from culm.model.attention.gqa import GQA
from culm.model.context import Context
from culm.model.score_rule import Backend, ScoreRule


class OneTower(DiffusionConfig):
    """trunk: of both clean and noisy concepts."""

    kind: Literal["one_tower"] = "one_tower"

    @model_validator(mode="after")
    def _masked(self) -> Self:
        for part in self.trunk.attention:
            plain = isinstance(part, GQA) and part.window is None and part.softcap is None
            if not plain or part.alibi or part.sink_logits or part.value_residual:
                raise ValueError(
                    "trunk.attention: one_tower masks plain grouped-query attention only; use "
                    "{kind: gqa} without window, softcap, alibi, sinks and value_residual"
                )
        return self

    def new(self, dim: int) -> OneTowerNetwork:
        return OneTowerNetwork(self, dim)


@dataclass(frozen=True)
class Masked:
    """Attention with a mask in place of the causal one. seen: (B, T, T) bool."""

    seen: Tensor

    def attend(self, q: Tensor, k: Tensor, v: Tensor, rule: ScoreRule, backend: Backend) -> Tensor:
        """q: (B, T, H, D), k, v: (B, T, K, D) -> (B, T, H, D)."""
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        heads = F.scaled_dot_product_attention(
            q, k, v, attn_mask=self.seen[:, None], scale=rule.scale, enable_gqa=True
        )
        return heads.transpose(1, 2)


class OneTowerNetwork(DiffusionNetwork):
    """concepts: (B, S, C) -> samples of the next concept after each."""

    def predictor(self, concepts: Tensor, dropped: Tensor | None = None) -> Predict:
        clean, (rows, size) = self.inward(concepts), concepts.shape[:2]
        places = torch.arange(size, device=concepts.device)
        positions = torch.cat((places, places + 1)).expand(rows, -1)
        with_context, alone = _masks(size, concepts.device)
        seen = with_context.expand(rows, -1, -1)
        if dropped is not None:
            seen = torch.where(dropped[:, None, None], alone, seen)

        def predict(state: Tensor, estimate: Tensor, times: Tensor | int, given: bool) -> Tensor:
            x, time = self.mixed(state, estimate, times)
            mask = Masked(seen if given else alone.expand(rows, -1, -1))
            context = Context(positions, sequence=mask)
            states = self.trunk(torch.cat((clean, x + time), 1), context)
            return self.outward(states[:, size:])

        return predict

    def last_predictor(self, history: History) -> Predict:
        """The noisy concept is written to the place of the next one, which overwrites it."""
        end = history.length + 1
        places = torch.full((len(history.states), 1), history.length, device=history.states.device)
        cached = Context(places, cache=history.cache.view(end))
        itself = Masked(torch.ones(len(places), 1, 1, dtype=torch.bool, device=places.device))
        alone = Context(places, sequence=itself)

        def predict(state: Tensor, estimate: Tensor, times: Tensor | int, given: bool) -> Tensor:
            x, time = self.mixed(state, estimate, times)
            return self.outward(self.trunk(x + time, cached if given else alone))

        return predict


def _masks(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(2S, 2S) bool: who attends to whom; and without the context of the noisy ones."""
    clean = torch.ones(size, size, dtype=torch.bool, device=device).tril()
    itself = torch.eye(size, dtype=torch.bool, device=device)
    none = torch.zeros_like(clean)
    first = torch.cat((clean, none), 1)
    # Noisy n stands for concept n + 1, and attends to the clean ones up to n.
    with_context = torch.cat((first, torch.cat((clean, itself), 1)))
    alone = torch.cat((first, torch.cat((none, itself), 1)))
    return with_context, alone
