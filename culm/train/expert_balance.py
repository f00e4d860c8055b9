"""What mixtures of experts need once a step: their load told, their selection biases moved."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from culm.model.mlp.router import Router


class Balance:
    """Called by the loop with the counts of a whole step, over micro-batches and ranks.

    counts: per layer with experts (experts + 1,), as `culm.objective.experts` gives them.

    Metrics: max_violation.N, of the layer N-th among those with experts: how much more its fullest
    expert got than the mean, as a share of it (MaxVio of arXiv 2408.15664); max_violation, of the
    worst layer; load.E of that layer, what each expert got as a multiple of the mean; dropped, the
    share of assignments that found their expert full.
    """

    def __init__(self, model: nn.Module) -> None:
        self.routers = [module for module in model.modules() if isinstance(module, Router)]

    def __call__(self, counts: Sequence[Tensor]) -> dict[str, float]:
        if not counts:
            return {}
        loads = [count[:-1] / count[:-1].mean() for count in counts]
        for router, count in zip(self.routers, counts, strict=True):
            move(router, count[:-1])
        violations = [float(load.max()) - 1 for load in loads]
        worst = max(range(len(loads)), key=violations.__getitem__)
        dropped = sum(float(count[-1]) for count in counts)
        return {
            "max_violation": violations[worst],
            **{f"max_violation.{layer}": value for layer, value in enumerate(violations)},
            **{f"load.{expert}": value for expert, value in enumerate(loads[worst].tolist())},
            "dropped": dropped / sum(float(count[:-1].sum()) for count in counts),
        }


@torch.no_grad()
def move(router: Router, counts: Tensor) -> None:
    """Experts with less than the mean become likelier, those with more less (arXiv 2408.15664).

    counts: (experts,). The mean of all moves is taken away, so that the biases keep their sum. A
    router that is not trained, below an adapter, keeps its bias too.
    """
    rate, bias = router.config.bias_rate, router.selection
    if not rate or bias is None or not router.weight.requires_grad:
        return
    signs = (counts.mean() - counts).sign()
    bias.add_((rate * (signs - signs.mean())).to(bias))
