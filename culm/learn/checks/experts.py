"""Exercises of lesson 5: routing, and what a mixture of experts computes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from culm.learn.exercise import Exercise, Mistake, normal
from culm.model.context import LayerContext
from culm.model.mlp.moe import MixtureOfExperts, MoE, Router
from culm.plan.model import idle_parameters

Routed = tuple[Tensor, Tensor]


def _router(logits: Tensor, config: MoE) -> Router:
    """A router that gives its input as logits."""
    router = Router(config, logits.shape[1])
    router.weight.data = torch.eye(logits.shape[1])
    return router


def _context(tokens: int) -> LayerContext:
    return LayerContext(torch.arange(tokens)[None])


def route(logits: Tensor, k: int) -> Routed:
    router = _router(logits, MoE(experts=logits.shape[1], top_k=k, hidden=1))
    weights, chosen, _ = router(logits, _context(len(logits)))
    return weights.detach(), chosen


def route_answer(logits: Tensor, k: int) -> Routed:
    shares, chosen = logits.softmax(-1).topk(k)
    return shares / shares.sum(-1, keepdim=True), chosen


def _route_unnormalised(logits: Tensor, k: int) -> Routed:
    shares, chosen = logits.softmax(-1).topk(k)
    return shares, chosen


def _route_evenly(logits: Tensor, k: int) -> Routed:
    weights, chosen = route_answer(logits, k)
    return torch.full_like(weights, 1 / k), chosen


def mixture(x: Tensor, router: Tensor, gate: Tensor, up: Tensor, down: Tensor, k: int) -> Tensor:
    config = MoE(experts=len(router), top_k=k, hidden=gate.shape[1])
    layer = MixtureOfExperts(config, x.shape[1])
    layer.router.weight.data = router
    experts = layer.experts
    experts.gate.weight.data, experts.up.weight.data, experts.down.weight.data = gate, up, down
    return layer(x[None], _context(len(x)))[0].detach()


def mixture_answer(
    x: Tensor, router: Tensor, gate: Tensor, up: Tensor, down: Tensor, k: int
) -> Tensor:
    weights, chosen = route_answer(x @ router.T, k)
    out = torch.zeros_like(x)
    for token in range(len(x)):
        for weight, expert in zip(weights[token], chosen[token].tolist(), strict=True):
            inner = F.silu(gate[expert] @ x[token]) * (up[expert] @ x[token])
            out[token] += weight * (down[expert] @ inner)
    return out


def _mixture_of_all(
    x: Tensor, router: Tensor, gate: Tensor, up: Tensor, down: Tensor, k: int
) -> Tensor:
    return mixture_answer(x, router, gate, up, down, len(router))


def _mixture_unweighted(
    x: Tensor, router: Tensor, gate: Tensor, up: Tensor, down: Tensor, k: int
) -> Tensor:
    _, chosen = route_answer(x @ router.T, k)
    out = torch.zeros_like(x)
    for token in range(len(x)):
        for expert in chosen[token].tolist():
            inner = F.silu(gate[expert] @ x[token]) * (up[expert] @ x[token])
            out[token] += down[expert] @ inner
    return out


def sizes(width: int, hidden: int, experts: int, k: int) -> tuple[int, int]:
    layer = MixtureOfExperts(MoE(experts=experts, top_k=k, hidden=hidden), width)
    every = sum(parameter.numel() for parameter in layer.parameters())
    return every, every - idle_parameters(layer)


def sizes_answer(width: int, hidden: int, experts: int, k: int) -> tuple[int, int]:
    expert, router = 3 * width * hidden, experts * width
    return experts * expert + router, k * expert + router


def _sizes_without_router(width: int, hidden: int, experts: int, k: int) -> tuple[int, int]:
    return experts * 3 * width * hidden, k * 3 * width * hidden


def fits(chosen: Tensor, experts: int, factor: float) -> Tensor:
    logits = torch.zeros(len(chosen), experts).scatter(1, chosen, 9.0 + 0.1 * -_places(chosen))
    config = MoE(experts=experts, top_k=chosen.shape[1], hidden=1, capacity=factor)
    router = _router(logits, config).train()
    weights, found, _ = router(logits, _context(len(chosen)))
    assert torch.equal(found, chosen)
    return weights > 0


def _places(chosen: Tensor) -> Tensor:
    """Smaller scores for later choices, so that their order stays."""
    return torch.arange(chosen.shape[1]).expand(chosen.shape).float()


def fits_answer(chosen: Tensor, experts: int, factor: float) -> Tensor:
    room = [math.ceil(factor * chosen.numel() / experts)] * experts
    kept = torch.zeros(chosen.shape, dtype=torch.bool)
    for token, places in enumerate(chosen.tolist()):
        for place, expert in enumerate(places):
            kept[token, place] = room[expert] > 0
            room[expert] -= 1
    return kept


def _fits_rounded_down(chosen: Tensor, experts: int, factor: float) -> Tensor:
    return fits_answer(
        chosen, experts, int(factor * chosen.numel() / experts) * experts / chosen.numel()
    )


def _fits_all(chosen: Tensor, experts: int, factor: float) -> Tensor:
    return torch.ones(chosen.shape, dtype=torch.bool)


def grouped(chosen: Tensor, experts: int) -> Routed:
    sorted_, order = chosen.flatten().sort(stable=True)
    ends = torch.searchsorted(sorted_, torch.arange(experts), right=True)
    return order // chosen.shape[1], ends


def grouped_answer(chosen: Tensor, experts: int) -> Routed:
    tokens, ends = list[int](), list[int]()
    for expert in range(experts):
        tokens += [token for token, row in enumerate(chosen.tolist()) for e in row if e == expert]
        ends.append(len(tokens))
    return torch.tensor(tokens, dtype=torch.int64), torch.tensor(ends)


def _grouped_starts(chosen: Tensor, experts: int) -> Routed:
    tokens, ends = grouped_answer(chosen, experts)
    return tokens, torch.cat((ends.new_zeros(1), ends[:-1]))


def choices(g: torch.Generator, tokens: int, experts: int, k: int) -> Tensor:
    """k distinct experts of each token, at random (tokens, k)."""
    return torch.rand(tokens, experts, generator=g).topk(k).indices


def _mixture_case(g: torch.Generator, k: int) -> tuple:
    shapes = ((5, 4), (3, 4), (3, 6, 4), (3, 6, 4), (3, 4, 6))
    return (*(normal(g, *shape) for shape in shapes), k)


EXERCISES = (
    Exercise(
        "experts.route",
        "Choose the k experts with the highest softmax score; divide their scores by their sum.",
        route,
        lambda g: [(normal(g, 6, 4), 2), (normal(g, 3, 8), 1), (normal(g, 2, 3), 3)],
        route_answer,
        (
            Mistake("the weights of a token must sum to 1.", _route_unnormalised),
            Mistake("an expert with a higher score has a higher weight.", _route_evenly),
        ),
    ),
    Exercise(
        "experts.mixture",
        "Give each token the sum of its k experts (SwiGLU each), each times its weight.",
        mixture,
        lambda g: [_mixture_case(g, 2), _mixture_case(g, 1)],
        mixture_answer,
        (
            Mistake("only k experts compute: that is the point.", _mixture_of_all),
            Mistake("multiply each expert by its weight.", _mixture_unweighted),
        ),
    ),
    Exercise(
        "experts.sizes",
        "Count the parameters of a layer of experts, and those that one token uses.",
        sizes,
        lambda g: [(32, 64, 8, 2), (16, 8, 4, 4)],
        sizes_answer,
        (
            Mistake("the router has a row for each expert.", _sizes_without_router),
            Mistake(
                "a token uses k experts.", lambda w, h, n, k: (sizes_answer(w, h, n, k)[0],) * 2
            ),
        ),
    ),
    Exercise(
        "experts.grouped",
        "List the tokens of expert 0, then those of expert 1, and so on, and where each ends.",
        grouped,
        lambda g: [(choices(g, 5, 4, 2), 4), (torch.tensor([[2], [2], [0]]), 4)],
        grouped_answer,
        (Mistake("give where the rows of each expert end.", _grouped_starts),),
    ),
    Exercise(
        "experts.fits",
        "Say which assignments fit, in the order of tokens: an expert takes at most `factor` times "
        "its even share, rounded up.",
        fits,
        lambda g: [
            (torch.tensor([[0], [0], [1], [0], [0]]), 2, 1.0),
            (choices(g, 8, 4, 2), 4, 0.6),
            (choices(g, 6, 3, 1), 3, 9.0),
        ],
        fits_answer,
        (
            Mistake("round up.", _fits_rounded_down),
            Mistake("later tokens find their expert full.", _fits_all),
        ),
    ),
)
