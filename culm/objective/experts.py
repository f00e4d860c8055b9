"""Mixtures of experts in training: auxiliary losses, and selection biases that even the load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from culm.batch import Term
from culm.model.context import LOADS, Routing
from culm.model.mlp.moe import Router


def routing_loss(routings: Sequence[Routing]) -> tuple[Term, dict[str, Tensor]]:
    """The auxiliary loss of all layers, a sum over tokens, and the load of each layer's experts.

    Loads: (experts + 1,) each; the last entry counts assignments that found their expert full.
    """
    total = torch.stack([routing.loss for routing in routings]).sum()
    loads = {
        f"{LOADS}{layer}": torch.cat((routing.counts, routing.dropped[None]))
        for layer, routing in enumerate(routings)
    }
    return Term(total, "tokens"), loads


def balance(routers: Sequence[Router | None], statistics: Mapping[str, Tensor]) -> dict[str, float]:
    """Move the selection biases by the loads of a step; reports how even these were.

    routers: None for one of another rank of a pipeline, which moves it.

    max_violation.N, of the N-th layer with experts: how much more its fullest expert got than the
    mean, as a fraction (MaxVio of arXiv 2408.15664); max_violation: of the worst layer; load.E of
    that layer: what each expert got, as a multiple of the mean; dropped: the fraction of
    assignments that found their expert full.
    """
    counts = [value for name, value in statistics.items() if name.startswith(LOADS)]
    if not counts:
        return {}
    loads = [count[:-1] / count[:-1].mean() for count in counts]
    for router, count in zip(routers, counts, strict=True):
        if router is not None:
            move_bias(router, count[:-1])
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
def move_bias(router: Router, counts: Tensor) -> None:
    """Experts below the mean load become more likely, those above less (arXiv 2408.15664).

    counts: (experts,). The mean move is subtracted, so that the biases keep their sum. A router
    that is not trained, as under an adapter, keeps its bias too.
    """
    rate, bias = router.config.bias_rate, router.selection
    if not rate or bias is None or not router.weight.requires_grad:
        return
    signs = (counts.mean() - counts).sign()
    bias.add_((rate * (signs - signs.mean())).to(bias))
